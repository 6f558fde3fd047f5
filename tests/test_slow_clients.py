"""Requests that do not arrive in time, and request lines and headers that are too large."""

import asyncio
import json
import time
from contextlib import AsyncExitStack

import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_http import RawConnection, connect, post

CHAT = f"{BASE}/chat"
HELLO = json.dumps({"message": "Hello"}).encode()
COUNT = 200


@pytest.fixture
async def api(serve: Serve) -> ClientSession:
    """A client of a service with short deadlines."""
    return await serve(header_timeout_s=1, body_timeout_s=0.3)


async def connections(
    stack: AsyncExitStack, api: ClientSession, data: bytes
) -> list[RawConnection]:
    opened = []
    for _ in range(COUNT):
        opened.append(await stack.enter_async_context(connect(api)))
        opened[-1].writer.write(data)
    return opened


async def test_silent_connections_are_closed_without_a_response(api: ClientSession) -> None:
    async with AsyncExitStack() as stack:
        opened = await connections(stack, api, b"")
        received = await asyncio.gather(*(one.read_to_end() for one in opened))
    assert received == [b""] * COUNT


async def test_incomplete_headers_are_answered_with_408(api: ClientSession) -> None:
    async with AsyncExitStack() as stack:
        opened = await connections(stack, api, b"POST /healthz HTTP/1.1\r\nHost: localh")
        errors = await asyncio.gather(*(one.error() for one in opened))
        ends = await asyncio.gather(*(one.read_to_end() for one in opened))
    assert errors == [(408, "request_timeout", "close")] * COUNT
    assert ends == [b""] * COUNT


async def test_single_bytes_do_not_extend_the_time_for_headers(api: ClientSession) -> None:
    async with connect(api) as one:
        error = asyncio.create_task(one.error())
        started = time.monotonic()
        for byte in b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 300:
            if error.done():
                break
            one.writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        assert await error == (408, "request_timeout", "close")
        assert time.monotonic() - started < 4


@pytest.mark.parametrize("path", [CHAT, "/openai/v1/chat/completions"])
async def test_incomplete_bodies_are_answered_with_408(api: ClientSession, path: str) -> None:
    request = post(path, b"x" * 1000)[:-10]
    async with AsyncExitStack() as stack:
        opened = await connections(stack, api, request)
        errors = await asyncio.gather(*(one.error() for one in opened))
        ends = await asyncio.gather(*(one.read_to_end() for one in opened))
    assert errors == [(408, "request_timeout", "close")] * COUNT
    assert ends == [b""] * COUNT


async def test_a_body_that_arrives_fast_enough_has_more_time(api: ClientSession) -> None:
    body = json.dumps({"message": "Hello" + " " * 20_000}).encode()
    request = post(CHAT, body)
    async with connect(api) as one:
        for start in range(0, len(request), 1000):
            one.writer.write(request[start : start + 1000])
            await asyncio.sleep(0.05)
        status, *_ = await one.response()
    assert status == 200


async def test_an_idle_connection_is_closed_after_the_keepalive_timeout(serve: Serve) -> None:
    api = await serve(keepalive_timeout_s=0.2)
    async with connect(api) as one:
        one.writer.write(post(CHAT, HELLO))
        assert (await one.response())[0] == 200
        assert await one.read_to_end() == b""


async def test_a_connection_stays_usable_after_its_deadlines(api: ClientSession) -> None:
    async with connect(api) as one:
        for _ in range(2):
            one.writer.write(post(CHAT, HELLO))
            assert (await one.response())[0] == 200
            await asyncio.sleep(1.3)


async def test_a_running_turn_has_no_deadline_of_its_request(serve: Serve) -> None:
    api = await serve(
        header_timeout_s=0.1, body_timeout_s=0.1, groq_base_url="offline:?latency_ms=600"
    )
    async with api.post(CHAT, json={"message": "Hello"}) as response:
        assert response.status == 200


async def test_an_unread_body_does_not_end_the_connection(api: ClientSession) -> None:
    request = post("/nope", b"x" * 1000)
    async with connect(api) as one:
        one.writer.write(request[:-500])
        assert (await one.response())[0] == 404
        one.writer.write(request[-500:] + post(CHAT, HELLO))
        assert (await one.response())[0] == 200


async def test_a_request_line_that_is_too_long_is_answered_with_414(api: ClientSession) -> None:
    async with connect(api) as one:
        await one.send(
            f"POST {BASE}/simple-chat?message={'x' * 2_000_000} HTTP/1.1", "Host: localhost"
        )
        assert await one.error() == (414, "uri_too_long", "close")


@pytest.mark.parametrize(
    "headers",
    [["X-Long: " + "x" * 10_000], [f"X-{number}: 1" for number in range(200)]],
    ids=["long", "many"],
)
async def test_large_headers_are_answered_with_431(api: ClientSession, headers: list[str]) -> None:
    async with connect(api) as one:
        await one.send("GET /healthz HTTP/1.1", "Host: localhost", *headers)
        assert await one.error() == (431, "headers_too_large", "close")


async def test_the_size_of_all_headers_is_limited(serve: Serve) -> None:
    api = await serve()
    async with connect(api) as one:
        one.writer.write(b"GET /healthz HTTP/1.1\r\n")
        for number in range(60):
            one.writer.write(f"X-{number}: {'x' * 5000}\r\n".encode())
        assert await one.error() == (431, "headers_too_large", "close")
