"""Correct requests with large bodies on connections that clients reuse, and greedy clients."""

import asyncio
import http.client
import json
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq
from tests.support.raw_http import connect, post

CHAT = f"{BASE}/chat"


def send_all(port: int, sizes: list[int]) -> list[int]:
    """Send requests with bodies of these sizes on one connection; return the statuses."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    statuses = []
    for size in sizes:
        body = json.dumps({"message": "x", "padding": "y" * size})
        client.request("POST", CHAT, body, {"Content-Type": "application/json"})
        response = client.getresponse()
        response.read()
        statuses.append(response.status)
    client.close()
    return statuses


def port_of(api: ClientSession) -> int:
    assert api._base_url is not None
    port: int | None = api._base_url.port
    assert port is not None
    return port


async def test_large_bodies_on_a_reused_connection_reach_their_handler(serve: Serve) -> None:
    api = await serve()
    sizes = [size for size in (120_000, 160_000, 200_000, 400_000, 1_000_000) for _ in range(6)]
    # 422: the handler has read the body and rejects its unknown field.
    statuses = await asyncio.to_thread(send_all, port_of(api), sizes)
    assert statuses == [422] * len(sizes)


async def test_a_client_that_holds_the_buffer_does_not_lock_out_others(serve: Serve) -> None:
    api = await serve(max_request_buffer_bytes=1_048_576, body_timeout_s=30)
    url = f"http://127.0.0.1:{port_of(api)}"
    async with connect(url) as greedy:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Content-Length: 2000000\r\n\r\n"
        )
        greedy.writer.write(head.encode() + b"x" * 1_048_000)
        await greedy.writer.drain()
        for number in range(10):
            body = json.dumps({"message": "Hello", "session_id": f"s{number}"}).encode()
            async with connect(url) as other:
                other.writer.write(post(CHAT, body))
                status, *_ = await other.response()
                assert status == 200
        large = json.dumps({"message": "Hello", "padding": "y" * 300_000})
        headers = {"Content-Type": "application/json"}
        async with api.post(CHAT, data=large, headers=headers) as response:
            await response.read()
            assert response.status == 422


async def test_a_body_that_pauses_after_a_fast_start_is_ended(serve: Serve) -> None:
    api = await serve(body_timeout_s=0.4)
    async with connect(f"http://127.0.0.1:{port_of(api)}") as one:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Content-Length: 3000000\r\n\r\n"
        )
        one.writer.write(head.encode() + b"x" * 2_000_000)
        await one.writer.drain()
        async with asyncio.timeout(5):
            status, *_ = await one.response()
    assert status == 408


async def status_of_health(api: ClientSession) -> int:
    """Return the status of /healthz, 0 if the service accepts no connection."""
    try:
        async with api.get("/healthz") as response:
            return response.status
    except OSError:
        return 0


async def test_a_client_that_does_not_read_its_response_is_disconnected(serve: Serve) -> None:
    api = await serve(stream_write_timeout_s=0.5, max_connections=8)
    clients: list[Any] = []
    for _ in range(8):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(api), limit=2)
        writer.write(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4)
        clients.append((reader, writer))
    try:
        assert await status_of_health(api) != 200
        async with asyncio.timeout(30):
            while (status := await status_of_health(api)) != 200:
                await asyncio.sleep(0.1)
        assert status == 200
    finally:
        for _, writer in clients:
            writer.transport.abort()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_with_a_key_that_cancels_its_turn_uses_one_slot(
    serve: Serve, *, stream: bool
) -> None:
    api = await serve(max_concurrent_turns=1)
    body = {"message": "Hello", "on_disconnect": "cancel", "stream": stream}
    headers = {"Idempotency-Key": f"one-slot-{stream}"}
    async with api.post(CHAT, json=body, headers=headers) as response:
        await response.read()
        assert response.status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413_without_side_effects(
    serve: Serve,
    redis: Redis,
    groq: MockGroq,
    chunked: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    api = await serve(max_body_bytes=1024)
    body = json.dumps({"message": "x" * 5000}).encode()

    async def chunks() -> Any:
        yield body

    headers = {"Content-Type": "application/json"}
    response = await api.post(CHAT, data=chunks() if chunked else body, headers=headers)
    await assert_error(response, 413, "body_too_large")
    assert await redis.dbsize() == 0
    assert groq.requests == []
    async with api.post(CHAT, json={"message": "Hello"}) as response:
        assert response.status == 200
