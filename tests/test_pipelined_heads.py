"""A part of a request that arrives behind another request."""

import asyncio
import json

import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_http import connect, post

CHAT = f"{BASE}/chat"
HELLO = post(CHAT, json.dumps({"message": "Hello", "session_id": "s"}).encode())
PAGE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
DELETE = b"DELETE /api/groq-chat/history/s HTTP/1.1\r\nHost: localhost\r\n"
TIMEOUT = (408, "request_timeout", "close")


@pytest.fixture
async def api(serve: Serve) -> ClientSession:
    """A client of a service with a short deadline for headers."""
    return await serve(header_timeout_s=0.3)


PARTS = (1, 5, 35, DELETE.index(b"\r") + 1, DELETE.index(b"\n") + 1, -2, -1, len(DELETE))


@pytest.mark.parametrize("first", [PAGE, HELLO], ids=["head", "body"])
async def test_a_part_behind_a_request_has_the_time_of_other_headers(
    api: ClientSession, first: bytes
) -> None:
    async def send(length: int) -> None:
        async with connect(api) as one:
            one.writer.write(HELLO)
            assert (await one.response())[0] == 200
            one.writer.write(first + DELETE[:length])
            assert (await one.response())[0] == 200, length
            assert await one.error() == TIMEOUT, length
            assert await one.read_to_end() == b"", length

    await asyncio.gather(*map(send, PARTS))
    # The part is not treated as a whole request.
    async with api.get(f"{BASE}/history/s") as response:
        assert (await response.json())["message_count"] >= 2


@pytest.mark.parametrize("has_pipelined", [False, True])
async def test_a_part_that_arrives_while_a_request_runs_has_the_time_of_other_headers(
    serve: Serve, *, has_pipelined: bool
) -> None:
    api = await serve(header_timeout_s=0.3, groq_base_url="offline:?latency_ms=300")
    async with connect(api) as one:
        one.writer.write(HELLO)
        await asyncio.sleep(0.1)
        one.writer.write((HELLO if has_pipelined else b"") + DELETE)
        for _ in range(1 + has_pipelined):
            assert (await one.response())[0] == 200
        assert await one.error() == TIMEOUT


async def test_an_idle_connection_is_usable_after_the_time_for_headers(api: ClientSession) -> None:
    async def send(end: bytes) -> None:
        async with connect(api) as one:
            for first in (HELLO, PAGE, PAGE + PAGE, HELLO):
                one.writer.write(first + end)
                for _ in range(first.count(b" HTTP/1.1\r\n")):
                    assert (await one.response())[0] == 200, end
                await asyncio.sleep(0.5)

    await asyncio.gather(*map(send, (b"", b"\r\n", b"\r\n\r\n")))


async def test_the_rest_of_a_part_completes_it(api: ClientSession) -> None:
    async with connect(api) as one:
        one.writer.write(PAGE + PAGE[:20])
        assert (await one.response())[0] == 200
        one.writer.write(PAGE[20:])
        assert (await one.response())[0] == 200
