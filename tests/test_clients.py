"""Client libraries run offline against the service as `make run` starts it.

Each runs in a process of its own: these libraries take seconds to import and leave connections
open, which would fail other tests.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Service, environment

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted(
    path.stem
    for path in (ROOT / "tests" / "clients").glob("*.py")
    if path.stem not in {"__init__", "expected"}
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with the embedded server and the mock Groq server."""
    with Service(tmp_path_factory.mktemp("service"), "--local") as service:
        yield service


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_client_library_works_offline(program: str, service: Service) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"tests.clients.{program}", service.url],
        cwd=ROOT,
        # Without the variable, litellm downloads a list of prices when it is imported.
        env=environment(LITELLM_LOCAL_MODEL_COST_MAP="True"),
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_clients_of_the_documentation_are_tested() -> None:
    assert PROGRAMS == [
        "groq_sdk",
        "instructor_client",
        "langchain_client",
        "litellm_client",
        "openai_sdk",
        "pydantic_ai_agent",
    ]
