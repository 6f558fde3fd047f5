"""Bounds on open connections and on requests that arrive."""

import asyncio
import gzip
import http.client
import json
import time
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from aiohttp import ClientSession

from groqchat.runtime.connections import SLOW_REQUEST_S
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.raw_http import RawConnection, connect, post
from tests.support.service import GROQCHAT, Service

CHAT = f"{BASE}/chat"
HELLO = json.dumps({"message": "Hello"}).encode()
MIB = 1_048_576


async def is_closed(one: RawConnection) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            return await one.reader.read() == b""
    return False


async def test_silent_connections_are_closed_for_new_ones(serve: Serve) -> None:
    api = await serve(max_connections=8)
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connect(api)) for _ in range(8)]
        for _ in range(4):
            async with connect(api) as one:
                one.writer.write(post(CHAT, HELLO, "Connection: close"))
                assert (await one.response())[0] == 200
        assert await is_closed(silent[0])
        assert not await is_closed(silent[-1])


async def test_idle_connections_are_closed_for_new_ones(serve: Serve) -> None:
    api = await serve(max_connections=8)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            one = await stack.enter_async_context(connect(api))
            one.writer.write(post(CHAT, HELLO))
            assert (await one.response())[0] == 200


async def test_clients_that_go_on_after_an_early_response_give_way_to_new_ones(
    serve: Serve,
) -> None:
    api = await serve(max_connections=8)
    async with AsyncExitStack() as stack:
        for _ in range(8):
            one = await stack.enter_async_context(connect(api))
            one.writer.write(post("/nope", b" " * 1000)[:-1])
            assert (await one.response())[0] == 404
        await asyncio.sleep(SLOW_REQUEST_S)
        async with connect(api) as late:
            late.writer.write(post(CHAT, HELLO))
            assert (await late.response())[0] == 200


async def test_a_connection_beyond_the_limit_is_rejected_if_all_are_busy(serve: Serve) -> None:
    api = await serve(max_connections=8, groq_base_url="offline:?latency_ms=1000")
    async with AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(connect(api)) for _ in range(8)]
        for one in busy:
            one.writer.write(post(CHAT, HELLO))
        await asyncio.sleep(0.2)
        async with connect(api) as late:
            assert await late.error() == (503, "overloaded", "close")
        assert [(await one.response())[0] for one in busy] == [200] * 8


async def test_the_connections_of_one_address_are_limited(serve: Serve) -> None:
    api = await serve(max_connections_per_address=3)
    async with AsyncExitStack() as stack:
        first = [await stack.enter_async_context(connect(api)) for _ in range(3)]
        async with connect(api) as fourth:
            assert await fourth.error() == (503, "overloaded", "close")
        first[0].writer.close()
        await first[0].writer.wait_closed()
        for _ in range(20):
            async with connect(api) as another:
                another.writer.write(post(CHAT, HELLO, "Connection: close"))
                if (await another.response())[0] == 200:
                    break
        else:
            raise AssertionError("a closed connection still counts")


async def test_the_connections_of_a_trusted_proxy_are_not_limited(serve: Serve) -> None:
    api = await serve(max_connections_per_address=1, trusted_proxies="10.0.0.0/8,127.0.0.1")
    async with AsyncExitStack() as stack:
        for _ in range(3):
            proxy = await stack.enter_async_context(connect(api))
            proxy.writer.write(post(CHAT, HELLO))
            assert (await proxy.response())[0] == 200


async def test_every_rejected_client_can_read_why(serve: Serve) -> None:
    api = await serve(max_connections_per_address=3)
    port = urlsplit(str(api._base_url)).port

    def ask() -> tuple[int, str]:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        client.connect()
        # The service has rejected the connection before the request arrives.
        time.sleep(0.01)
        client.request("POST", CHAT, HELLO, {"Content-Type": "application/json"})
        with closing(client), client.getresponse() as response:
            return response.status, json.loads(response.read())["error"]["code"]

    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(connect(api))
        outcomes = [await asyncio.to_thread(ask) for _ in range(40)]
    assert outcomes == [(503, "overloaded")] * 40


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_requests_beyond_the_buffer_limit_are_rejected(serve: Serve, encoding: str) -> None:
    api = await serve(max_request_buffer_bytes=MIB)
    body = b" " * (MIB // 4)
    if encoding == "gzip":
        # The sizes after the decompression count.
        body = gzip.compress(body)
    unfinished = post(CHAT, body, f"Content-Encoding: {encoding}")[:-1]
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connect(api)) for _ in range(10)]
        for one in opened:
            one.writer.write(unfinished)
        answers = [asyncio.create_task(one.error()) for one in opened]
        done, pending = await asyncio.wait(answers, timeout=1)
        for task in pending:
            task.cancel()
        assert len(pending) in {3, 4}
        assert {task.result() for task in done} == {(503, "overloaded", "close")}
    await _eventually_accepted(api)


async def test_compressed_bodies_behind_a_running_request_count(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(max_request_buffer_bytes=MIB)
    release = groq.hold()
    body = gzip.compress(b" " * (4 * MIB))
    pipelined = post(CHAT, body, "Content-Encoding: gzip")
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connect(api)) for _ in range(10)]
        for one in opened:
            one.writer.write(post(CHAT, HELLO))
        async with asyncio.timeout(10):
            while len(groq.requests) < len(opened):
                await asyncio.sleep(0.01)
        for one in opened:
            one.writer.write(pipelined)
        # Their first responses are on their way, so they can only be closed.
        closed = [asyncio.create_task(one.read_to_end()) for one in opened]
        done, pending = await asyncio.wait(closed, timeout=1)
        release.set()
        for task in pending:
            task.cancel()
        assert len(done) >= 5
        for task in done:
            with suppress(ConnectionError):
                assert await task == b""
    await _eventually_accepted(api)


async def _eventually_accepted(api: ClientSession) -> None:
    """Check that the buffers of closed connections are free."""
    for _ in range(50):
        async with api.post(CHAT, data=b'{"message": "Hello"}' + b" " * (MIB // 2)) as response:
            if response.status != 503:
                assert response.status == 415
                return
        await asyncio.sleep(0.05)
    raise AssertionError("the buffers are still full")


async def test_new_clients_are_served_despite_silent_ones_with_few_open_files(
    tmp_path: Path,
) -> None:
    program = ("sh", "-c", 'ulimit -n 256 && exec "$0" "$@"', *GROQCHAT)
    with Service(
        tmp_path, program=program, REDIS_URL="memory:", GROQ_BASE_URL="offline:"
    ) as service:
        async with AsyncExitStack() as stack:
            for _ in range(600):
                with suppress(OSError):
                    await stack.enter_async_context(connect(service.url))
            response = await asyncio.to_thread(
                requests.post, f"{service.url}{CHAT}", json={"message": "Hello"}, timeout=10
            )
        assert response.status_code == 200
