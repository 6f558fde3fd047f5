"""Clients that close their half of the connection after the request."""

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_http import RawConnection, connect, post
from tests.support.service import Service

CHAT = f"{BASE}/chat"
HELLO = json.dumps({"message": "Hello"}).encode()
STREAM = json.dumps({"message": "Hello", "stream": True}).encode()


async def send_and_half_close(one: RawConnection, data: bytes, *, waits: bool) -> bytes:
    """Send requests, close this half, and return everything that the service sends."""
    one.writer.write(data)
    if waits:
        await asyncio.sleep(0.1)
    one.writer.write_eof()
    return await one.read_to_end()


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
async def test_a_half_closed_connection_gets_its_whole_response(
    serve: Serve, *, waits: bool
) -> None:
    api = await serve(groq_base_url="offline:?latency_ms=300")
    async with connect(api) as one:
        received = await send_and_half_close(one, post(CHAT, HELLO), waits=waits)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert json.loads(body)["history_saved"] is True


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
async def test_a_half_closed_connection_gets_its_whole_stream(serve: Serve, *, waits: bool) -> None:
    api = await serve(groq_base_url="offline:?latency_ms=300")
    async with connect(api) as one:
        received = await send_and_half_close(one, post(CHAT, STREAM), waits=waits)
    assert b"event: start" in received
    assert b"event: done" in received
    assert received.endswith(b"0\r\n\r\n")


async def test_pipelined_requests_are_answered_before_the_connection_is_closed(
    api: ClientSession,
) -> None:
    async with connect(api) as one:
        received = await send_and_half_close(one, post(CHAT, HELLO) * 3, waits=False)
    assert received.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("missing", [1, len(HELLO) + 10], ids=["body", "headers"])
async def test_an_incomplete_request_is_answered_with_400(api: ClientSession, missing: int) -> None:
    async with connect(api) as one:
        one.writer.write(post(CHAT, HELLO)[:-missing])
        one.writer.write_eof()
        status, code, connection = await one.error()
        assert await one.read_to_end() == b""
    assert (status, connection) == (400, "close")
    assert code == ("incomplete_body" if missing == 1 else "bad_request")


async def test_an_idle_connection_is_closed(api: ClientSession) -> None:
    async with connect(api) as one:
        one.writer.write(post(CHAT, HELLO))
        assert (await one.response())[0] == 200
        one.writer.write_eof()
        assert await one.read_to_end() == b""


async def test_a_plain_turn_that_ends_with_its_client_ends_on_half_close(
    serve: Serve, redis: Redis
) -> None:
    api = await serve(groq_base_url="offline:?latency_ms=20000")
    body = {"message": "Hello", "on_disconnect": "cancel", "session_id": "s"}
    async with connect(api) as one:
        one.writer.write(post(CHAT, json.dumps(body).encode()))
        while not await redis.exists("chat:session:s"):
            await asyncio.sleep(0.01)
        one.writer.write_eof()
        async with asyncio.timeout(10):
            assert b'"status":"incomplete"' in await one.read_to_end()


async def test_a_stream_ends_if_its_client_closes_the_connection(serve: Serve) -> None:
    api = await serve(groq_base_url="offline:?latency_ms=20000")
    body = {"message": "Hello", "stream": True, "on_disconnect": "cancel"}
    async with connect(api) as one:
        one.writer.write(post(CHAT, json.dumps(body).encode()))
        head = await one.reader.readuntil(b"\n\n")
        data = json.loads(head.split(b"data: ")[1].split(b"\n")[0])
    url = f"{BASE}/chat/{data['turn_id']}/events"
    async with asyncio.timeout(10), api.get(url) as response:
        assert '"status":"incomplete"' in await response.text()


def test_both_event_loops_answer_a_half_closed_connection(tmp_path: Path) -> None:
    for loop in ("uvloop", "asyncio"):
        # A module of this name that cannot be imported hides the real one.
        directory = tmp_path / loop
        directory.mkdir()
        if loop == "asyncio":
            (directory / "uvloop.py").write_text("raise ImportError")
        with Service(
            directory,
            PYTHONPATH=str(directory),
            REDIS_URL="memory:",
            GROQ_BASE_URL="offline:?latency_ms=100",
        ) as service:

            async def ask(url: str) -> list[bytes]:
                async with connect(url) as one, connect(url) as two:
                    return [
                        await send_and_half_close(one, post(CHAT, HELLO), waits=True),
                        await send_and_half_close(two, post(CHAT, STREAM), waits=True),
                    ]

            plain, stream = asyncio.run(ask(service.url))
        assert plain.startswith(b"HTTP/1.1 200 OK"), loop
        assert b"event: done" in stream, loop
