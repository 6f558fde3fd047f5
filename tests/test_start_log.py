"""The log lines about the addresses of the service."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.service import Service

WARNING = "it does not authenticate clients"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A working directory with a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="groqchat-") as name:
        yield Path(name)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_log_contains_the_addresses_once(directory: Path, workers: str) -> None:
    with Service(directory, "--local", "--workers", workers) as service:
        urls = re.findall(r"http://\S+(?=, |/docs)", service.log.split("answers at ")[1])
        for path in ("/", "/docs", "/openapi.json"):
            assert requests.get(f"{service.url}{path}", timeout=30).status_code == 200
        # Every address in this line exists.
        for url in re.findall(r"http://[^\s,]+", service.log.split("answers at ")[-1]):
            assert requests.get(url, timeout=30).status_code == 200, url
        assert service.terminate() == 0
    assert service.url.startswith("http://127.0.0.1:")
    assert service.url in urls
    assert WARNING not in service.log
    assert f"documentation: {service.url}/docs" in service.log
    assert service.log.count("answers at") == 1 + service.log.count("mock Groq server answers at")


@pytest.mark.parametrize(
    # The test above starts the service on 127.0.0.1.
    ("host", "is_exposed", "workers"),
    [("0.0.0.0", True, "1"), ("0.0.0.0", True, "2"), ("localhost", False, "1")],
)
def test_an_exposed_service_logs_one_warning(
    directory: Path, host: str, workers: str, *, is_exposed: bool
) -> None:
    with Service(directory, "--local", "--workers", workers, HOST=host) as service:
        assert requests.get(f"{service.url}/healthz", timeout=30).status_code == 200
        service.terminate_later()
        service.wait_for("is stopping")
        assert service.wait() == 0
    assert service.log.count(WARNING) == int(is_exposed)
