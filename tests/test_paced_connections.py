"""Compressed bodies that arrive at the same time: their memory, and the time that others wait."""

import asyncio
import gc
import gzip
import json
import random
from contextlib import AsyncExitStack, suppress

import pytest
from aiohttp import ClientSession, StreamReader

from groqchat.runtime import paced_connection
from groqchat.runtime.paced_connection import PacedConnection
from groqchat.runtime.protocol import HttpConnection
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.raw_http import RawConnection, connect
from tests.support.streams import wait_until

MIB = 1024 * 1024
CHAT = f"{BASE}/chat"
# About 50 KB that are decompressed to 3 MB.
BLOCK = random.Random(0).randbytes(10_000).hex()  # noqa: S311 - not used for security
BOMB = gzip.compress(json.dumps({"message": BLOCK * 150}).encode())


def request(body: bytes, *, missing: int = 0) -> bytes:
    """Return a chat request with a compressed body, of which some bytes are missing."""
    lines = [
        f"POST {CHAT} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "Content-Encoding: gzip",
        f"Content-Length: {len(body) + missing}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def open_many(stack: AsyncExitStack, api: ClientSession, count: int) -> list[RawConnection]:
    return [await stack.enter_async_context(connect(api)) for _ in range(count)]


@pytest.fixture
def most_buffered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of bytes of all incomplete requests when it was largest."""
    most = [0]
    count = HttpConnection._count

    def counted(connection: HttpConnection, number: int) -> None:
        count(connection, number)
        most[0] = max(most[0], connection._all.buffered_bytes)

    monkeypatch.setattr(HttpConnection, "_count", counted)
    return most


async def test_bodies_that_arrive_at_once_are_not_decompressed_at_once(
    serve: Serve, most_buffered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paced_connection, "DECOMPRESSED_BURST_BYTES", 1000 * MIB)
    api = await serve(max_request_buffer_bytes=32 * MIB)
    async with AsyncExitStack() as stack:
        opened = await open_many(stack, api, 150)
        for one in opened:
            one.writer.write(request(BOMB, missing=1))
        async with api.get("/healthz") as response:
            assert response.status == 200
        rejected = await asyncio.gather(*(one.error() for one in opened[:20]))
    assert {status for status, _, _ in rejected} == {503}
    # All of them have 450 MB.
    assert 0 < most_buffered[0] < 150 * MIB


@pytest.mark.parametrize("count", [1, 40])
async def test_no_request_is_lost_while_compressed_bodies_wait(
    api: ClientSession, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    # Only one connection is parsed in each iteration of the event loop.
    monkeypatch.setattr(paced_connection, "MAX_PARSING_S", 0)
    monkeypatch.setattr(paced_connection, "MIN_PARSING_S", 0)
    async with AsyncExitStack() as stack:
        opened = await open_many(stack, api, count)
        for number, one in enumerate(opened):
            sent = [
                request(gzip.compress(json.dumps({"message": f"{number} {part}"}).encode()))
                for part in range(3)
            ]
            # The second request arrives in two parts.
            one.writer.write(sent[0] + sent[1][:-5])
        await asyncio.sleep(0)
        for number, one in enumerate(opened):
            body = gzip.compress(json.dumps({"message": f"{number} 1"}).encode())
            one.writer.write(request(body)[-5:])
            one.writer.write_eof()
        for one in opened:
            for _ in range(2):
                assert (await one.response())[0] == 200
            assert await one.read_to_end() == b""


async def test_the_end_of_a_client_that_arrives_while_its_data_waits_is_not_lost(
    api: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paced_connection, "MAX_PARSING_S", 0)
    monkeypatch.setattr(paced_connection, "MIN_PARSING_S", 0)
    # The transport reads on although data waits.
    monkeypatch.setattr(PacedConnection, "_set_reading", lambda *_, **__: None)
    body = gzip.compress(b'{"message": "Hello"}')
    async with AsyncExitStack() as stack:
        opened = await open_many(stack, api, 30)
        for one in opened:
            one.writer.write(request(body) * 3)
            one.writer.write_eof()
        for one in opened:
            for _ in range(3):
                assert (await one.response())[0] == 200
            assert await one.read_to_end() == b""


async def test_requests_behind_a_running_one_are_discarded_with_their_connection(
    serve: Serve, groq: MockGroq, most_buffered: list[int]
) -> None:
    api = await serve(max_request_buffer_bytes=MIB)
    release = groq.hold()
    async with AsyncExitStack() as stack:
        opened = await open_many(stack, api, 5)
        for one in opened:
            one.writer.write(request(gzip.compress(b'{"message": "Hello"}')) + request(BOMB))

        # The service closes connections until the second requests of the others fit.
        async def are_discarded() -> bool:
            return most_buffered[0] > MIB and len(groq.requests) == 5 and held() < 1.5 * MIB

        await wait_until(are_discarded)
        release.set()
        closed = 0
        for one in opened:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                status, _, _ = await one.response()
                assert status == 200
                continue
            closed += 1
    assert closed >= 3


def held() -> int:
    """Return the size of all request bodies that are not read yet."""
    gc.collect()
    readers = [each for each in gc.get_objects() if type(each) is StreamReader]
    return sum(each.total_bytes for each in readers)
