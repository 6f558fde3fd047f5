"""The deadlines of a completion: for the first byte, for each pause and for the whole."""

import asyncio
import time
from typing import Any

import pytest
from aiohttp import ClientSession

from groqchat.services.groq import aiohttp_internals
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.raw_groq import (
    COMPLETION,
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    RawGroq,
    Respond,
    chunked,
    event,
    whole,
)

OPENAI = "/openai/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
STREAM_KINDS = ["chat stream", "openai stream"]
PLAIN_KINDS = ["chat", "chat with key", "openai"]
# The headers of a variant of a request.
HEADERS = {"with key": {"Idempotency-Key": "k"}, "session": {"X-Session-Id": "s"}}
NEAR_S = 0.4


async def send(api: ClientSession, kind: str) -> tuple[int, str]:
    """Send a request of a kind; return its status and body, which may be a stream of events."""
    name, _, variant = kind.partition(" ")
    is_stream = variant in {"stream", "session"}
    headers = HEADERS.get(variant, {})
    if name == "openai":
        body: dict[str, Any] = {"model": "m", "messages": MESSAGES, "stream": is_stream}
        path = OPENAI
    else:
        body, path = {"message": "Hello", "stream": is_stream}, f"{BASE}/chat"
    async with asyncio.timeout(20):
        async with api.post(path, json=body, headers=headers) as response:
            return response.status, await response.text()


async def assert_timeout(api: ClientSession, kind: str, *, deadline_s: float) -> None:
    """Check that a request fails with `completion_timeout` soon after a deadline."""
    started = time.monotonic()
    status, text = await send(api, kind)
    took_s = time.monotonic() - started

    assert '"completion_timeout"' in text
    assert status in {200, 504} if kind in STREAM_KINDS else status == 504
    assert deadline_s * 0.9 <= took_s < deadline_s + 5


def dribble(head: bytes, piece: bytes) -> Respond:
    """Send a head, and then a piece every 20 ms without an end."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    return respond


def stall(*parts: bytes) -> Respond:
    """Send some bytes, and then nothing more."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.writelines(parts)
        await asyncio.Event().wait()

    return respond


def answer(content: bytes, after_s: float = 0.0) -> Respond:
    async def respond(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(after_s)
        writer.write(content)

    return respond


HALF = whole(COMPLETION)[:-5]
ENDLESS_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"


@pytest.mark.parametrize("kind", STREAM_KINDS)
@pytest.mark.parametrize("piece", [b": ping\n\n", b":", b"d"], ids=["comment", "byte", "line"])
async def test_a_stream_without_an_end_is_ended_by_the_deadline_of_the_whole(
    serve: Serve, kind: str, piece: bytes
) -> None:
    async with RawGroq(dribble(STREAM_HEAD, chunked(piece))).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_timeout_s=NEAR_S)
        await assert_timeout(api, kind, deadline_s=NEAR_S)


@pytest.mark.parametrize("kind", PLAIN_KINDS)
async def test_a_body_without_an_end_is_ended_by_the_deadline_of_the_whole(
    serve: Serve, kind: str
) -> None:
    async with RawGroq(dribble(ENDLESS_HEAD, b" ")).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_timeout_s=NEAR_S)
        await assert_timeout(api, kind, deadline_s=NEAR_S)


@pytest.mark.parametrize("kind", [*STREAM_KINDS, *PLAIN_KINDS])
async def test_the_deadline_of_the_whole_ends_a_request_without_a_response(
    serve: Serve, kind: str
) -> None:
    async with RawGroq(stall()).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_timeout_s=NEAR_S)
        await assert_timeout(api, kind, deadline_s=NEAR_S)


@pytest.mark.parametrize("kind", STREAM_KINDS)
async def test_a_stream_that_does_not_begin_is_ended_by_the_first_byte_deadline(
    serve: Serve, kind: str
) -> None:
    async with RawGroq(stall()).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_first_byte_timeout_s=NEAR_S)
        await assert_timeout(api, kind, deadline_s=NEAR_S)
        assert len(groq.bodies) == 1


@pytest.mark.parametrize("kind", STREAM_KINDS)
@pytest.mark.parametrize("parts", [(), (chunked(event("Hi")),)], ids=["headers", "first event"])
async def test_a_stream_that_pauses_is_ended_by_the_read_deadline(
    serve: Serve, kind: str, parts: tuple[bytes, ...]
) -> None:
    async with RawGroq(stall(STREAM_HEAD, *parts)).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_read_timeout_s=NEAR_S)
        await assert_timeout(api, kind, deadline_s=NEAR_S)


@pytest.mark.parametrize("kind", PLAIN_KINDS)
async def test_a_body_that_pauses_is_ended_by_the_read_deadline(serve: Serve, kind: str) -> None:
    async with RawGroq(stall(HALF)).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_read_timeout_s=NEAR_S, groq_max_retries=0)
        await assert_timeout(api, kind, deadline_s=NEAR_S)


@pytest.mark.parametrize("kind", PLAIN_KINDS)
async def test_a_completion_that_is_not_streamed_is_ended_by_the_first_byte_deadline(
    serve: Serve, kind: str
) -> None:
    async with RawGroq(answer(whole(COMPLETION), after_s=30)).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_first_byte_timeout_s=NEAR_S)
        await assert_timeout(api, kind, deadline_s=NEAR_S)


@pytest.mark.parametrize("kind", PLAIN_KINDS)
async def test_the_read_deadline_does_not_apply_to_the_first_byte(serve: Serve, kind: str) -> None:
    async with RawGroq(answer(whole(COMPLETION), after_s=0.5)).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_read_timeout_s=0.1)
        status, text = await send(api, kind)

    assert status == 200
    assert "Hi" in text


@pytest.mark.parametrize("kind", ["chat", "openai"])
async def test_the_read_deadline_of_a_response_does_not_apply_to_the_next_request(
    serve: Serve, kind: str
) -> None:
    waits = iter([0.0, 0.5])

    async def respond(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(next(waits))
        response = whole(COMPLETION)
        writer.write(response[:-5])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(response[-5:])

    async with RawGroq(respond).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_read_timeout_s=0.3, groq_max_retries=0)
        statuses = [(await send(api, kind))[0] for _ in range(2)]

    assert statuses == [200, 200]


@pytest.mark.parametrize("kind", STREAM_KINDS)
async def test_a_slow_stream_within_its_deadlines_is_complete(serve: Serve, kind: str) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for part in [event("He"), event("llo"), event(None, "stop"), DONE]:
            await asyncio.sleep(0.15)
            writer.write(chunked(part))
        writer.write(LAST_CHUNK)

    async with RawGroq(respond).serve() as groq:
        api = await serve(
            groq_base_url=groq.url, groq_first_byte_timeout_s=0.4, groq_read_timeout_s=0.4
        )
        status, text = await send(api, kind)

    assert status == 200
    assert "error" not in text
    assert "llo" in text


async def test_a_turn_may_take_longer_than_fifteen_minutes_if_the_setting_allows_it(
    serve: Serve, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []
    timeout = asyncio.timeout

    def recorded(limit_s: float | None) -> asyncio.Timeout:
        limits.append(limit_s)
        return timeout(limit_s)

    api = await serve(groq_timeout_s=3600)
    monkeypatch.setattr(asyncio, "timeout", recorded)
    status, _ = await send(api, "chat stream")

    assert status == 200
    assert len(groq.requests) == 1
    assert 3600 in limits
    assert 900 not in limits


@pytest.mark.parametrize("kind", ["chat", "chat stream"])
async def test_an_error_body_without_an_end_is_not_read_to_the_deadline(
    serve: Serve, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiohttp_internals, "MAX_RESPONSE_BYTES", 1_000_000)
    head = ENDLESS_HEAD.replace(b"200 OK", b"400 Bad Request").replace(b"9999", b"999999999")
    sent = 0

    async def respond(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head)
        while True:
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async with RawGroq(respond).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_max_retries=0)
        status, _ = await asyncio.wait_for(send(api, kind), 10)
    assert status == 502
    # What the service reads, and the buffers of the kernel.
    assert sent < 20_000_000
