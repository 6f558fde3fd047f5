"""The log of connections that a limit rejects."""

import asyncio
import logging
from contextlib import AsyncExitStack

import pytest

from groqchat.runtime.rejections import LOG_INTERVAL_S, Rejections
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.raw_http import connect, post
from tests.support.streams import wait_until

LOGGER = "groqchat.runtime.rejections"
MIB = 1_048_576


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


async def line_of(caplog: pytest.LogCaptureFixture) -> str:
    """Return the only line, which is logged within a moment."""
    async with asyncio.timeout(5):
        while not lines(caplog):
            await asyncio.sleep(0.01)
    (line,) = lines(caplog)
    return line


def test_a_limit_has_one_line_in_an_interval_with_the_number_of_all_rejections(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 100.0
    rejections = Rejections(clock=lambda: now_s)
    rejections.log()
    for address in ("10.0.0.1", "10.0.0.2"):
        rejections.add("MAX_CONNECTIONS", address)
    rejections.log()
    rejections.add("MAX_CONNECTIONS", "10.0.0.3")
    rejections.add("MAX_REQUEST_BUFFER_BYTES", "10.0.0.4")
    rejections.log()
    now_s += LOG_INTERVAL_S
    rejections.add("MAX_CONNECTIONS", "fe80::1")
    rejections.log()
    rejections.log()
    reached = "MAX_CONNECTIONS is reached"
    assert lines(caplog) == [
        f"{reached}: rejected 2 connection(s), the last one of 10.0.0.2",
        "MAX_REQUEST_BUFFER_BYTES is reached: rejected 1 connection(s), the last one of 10.0.0.4",
        f"{reached}: rejected 2 connection(s), the last one of fe80::1",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


async def test_connections_beyond_the_limit_of_an_address_are_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    api = await serve(max_connections_per_address=1)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(connect(api))
        for _ in range(5):
            rejected = await stack.enter_async_context(connect(api))
            assert (await rejected.response())[0] == 503
        assert await line_of(caplog) == (
            "MAX_CONNECTIONS_PER_ADDRESS is reached: rejected 5 connection(s), "
            "the last one of 127.0.0.1"
        )


async def are_running(groq: MockGroq) -> bool:
    return len(groq.requests) == 8


async def test_connections_beyond_the_limit_of_all_connections_are_logged(
    serve: Serve, groq: MockGroq, caplog: pytest.LogCaptureFixture
) -> None:
    groq.options.latency_ms = 500
    api = await serve(max_connections=8)
    async with AsyncExitStack() as stack:
        for _ in range(8):
            busy = await stack.enter_async_context(connect(api))
            busy.writer.write(post(f"{BASE}/chat", b'{"message": "Hello"}'))
        await wait_until(lambda: are_running(groq))
        async with connect(api) as late:
            assert (await late.response())[0] == 503
    line = "MAX_CONNECTIONS is reached: rejected 1 connection(s), the last one of 127.0.0.1"
    assert await line_of(caplog) == line


async def test_requests_beyond_the_buffer_limit_are_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    api = await serve(max_request_buffer_bytes=MIB, max_body_bytes=MIB // 4)
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connect(api)) for _ in range(5)]
        for one in opened:
            one.writer.write(post(f"{BASE}/chat", b" " * (MIB // 4 - 1000))[:-1])
        line = await line_of(caplog)
    assert line.startswith("MAX_REQUEST_BUFFER_BYTES is reached: rejected 1 connection(s), ")


async def test_a_limit_that_is_not_reached_has_no_line(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    api = await serve(header_timeout_s=0.2)
    async with connect(api) as one:
        assert await one.read_to_end() == b""
    assert lines(caplog) == []
