"""Coalescing of streams: pieces that arrive shortly after each other are sent together."""

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable

import pytest
import trustme
from aiohttp import ClientResponse, ClientSession

from groqchat.services.groq import http_session
from groqchat.services.groq.aiohttp_internals import GroqConnector
from groqchat.services.groq.coalescing import (
    MIN_WINDOW_S,
    READS_PER_S,
    Coalescing,
    StreamPace,
)
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.events import all_events, read_events, text_of
from tests.support.raw_groq import DONE, LAST_CHUNK, STREAM_HEAD, RawGroq, chunked, event

PIECES = 200
FAST_S = 0.002
# Too slow for two pieces within the shortest window.
SLOW_S = MIN_WINDOW_S * 0.75
TEXTS = [f"{number} " for number in range(PIECES)]
OPENAI = "/openai/v1/chat/completions"


def respond_every(
    interval_s: float, pieces: int = PIECES, *, ends_body: bool = True
) -> Callable[..., Awaitable[None]]:
    """Send a piece of text in each interval, whatever the time that a sleep takes."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        begin = time.monotonic()
        for number, text in enumerate(TEXTS[:pieces]):
            await asyncio.sleep(begin + number * interval_s - time.monotonic())
            writer.write(chunked(event(text)))
        writer.write(chunked(event(None, "stop") + DONE) + (LAST_CHUNK if ends_body else b""))

    return respond


async def post(api: ClientSession, endpoint: str) -> ClientResponse:
    if endpoint == OPENAI:
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
        return await api.post(OPENAI, json=body)
    return await api.post(f"{BASE}/chat", json={"message": "Hello", "stream": True})


async def writes_of(response: ClientResponse) -> tuple[int, bytes]:
    """Return the number of HTTP chunks of a response, and its body."""
    parts, body = 0, b""
    async for data, ends_chunk in response.content.iter_chunks():
        parts += ends_chunk
        body += data
    return parts, body


async def test_fast_pieces_of_chat_share_events(serve: Serve) -> None:
    async with RawGroq(respond_every(FAST_S)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        async with await post(api, "/chat") as response:
            events = await all_events(response)
    assert text_of(events) == "".join(TEXTS) == events[-1].data["message"]
    assert [each.id for each in events] == list(range(1, len(events) + 1))
    assert len(events) < PIECES / 2


async def test_fast_pieces_of_openai_are_forwarded_unchanged_in_fewer_writes(serve: Serve) -> None:
    async with RawGroq(respond_every(FAST_S)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        writes, body = await writes_of(await post(api, OPENAI))
        for _ in range(3):
            await (await post(api, OPENAI)).read()
    assert body == b"".join(map(event, TEXTS)) + event(None, "stop") + DONE
    assert writes < PIECES / 2
    # A paused connection is reused. The list of models uses one, too.
    assert raw.connections <= 3


@pytest.fixture
def server_side(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The context of a Groq server on 127.0.0.1 that the service trusts."""
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    class TrustingConnector(GroqConnector):
        def __init__(self, *, limit: int, keepalive_timeout: float) -> None:
            super().__init__(limit=limit, keepalive_timeout=keepalive_timeout)
            self._ssl = client_side

    monkeypatch.setattr(http_session, "GroqConnector", TrustingConnector)
    return server_side


@pytest.mark.parametrize("ends_body", [True, False])
async def test_text_that_arrived_before_a_tls_connection_broke_is_complete(
    serve: Serve, server_side: ssl.SSLContext, *, ends_body: bool
) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        await respond_every(FAST_S, 40, ends_body=ends_body)(writer)
        await writer.drain()
        # Within the window.
        await asyncio.sleep(0.003)
        # The connection is reset, not closed.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with RawGroq(respond).serve(server_side) as raw:
        api = await serve(groq_base_url=f"https://127.0.0.1:{raw.port}")
        for _ in range(10):
            async with await post(api, "/chat") as response:
                events = await all_events(response)
            assert text_of(events) == "".join(TEXTS[:40]) == events[-1].data["message"]
            assert len(events) < 35


@pytest.mark.parametrize("endpoint", ["/chat", OPENAI])
async def test_slow_pieces_are_sent_one_by_one(serve: Serve, endpoint: str) -> None:
    async with RawGroq(respond_every(SLOW_S, 40)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        writes, _ = await writes_of(await post(api, endpoint))
    # Each piece, the start, and the end; a busy machine delivers a few pieces together.
    assert writes > 30


async def test_the_first_text_is_not_delayed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_for_ever(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(StreamPace, "wait", wait_for_ever)

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for _ in range(10):
            # Reasoning precedes the text.
            writer.write(chunked(event("")))
            await writer.drain()
            await asyncio.sleep(FAST_S)
        writer.write(chunked(event("Hi")))
        await asyncio.Event().wait()

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url, shutdown_grace_s=0.1)
        async with asyncio.timeout(5), await post(api, "/chat") as response:
            events = read_events(response)
            assert [(await anext(events)).name for _ in range(2)] == ["start", "delta"]


async def test_without_a_window_nothing_is_collected(serve: Serve) -> None:
    async with RawGroq(respond_every(FAST_S * 4, 40)).serve() as raw:
        api = await serve(groq_base_url=raw.url, stream_coalesce_ms=0)
        writes, _ = await writes_of(await post(api, "/chat"))
    assert writes > 30


@pytest.mark.parametrize(
    ("streams", "window_s"),
    [(1, MIN_WINDOW_S), (500, 500 / READS_PER_S), (5000, 0.2)],
)
async def test_the_window_grows_with_the_number_of_streams(streams: int, window_s: float) -> None:
    paces = Coalescing(0.2)
    async with ClientSession() as session, RawGroq(respond_every(0, 1)).serve() as raw:
        response = await session.post(raw.url, data=b"{}")
        open_paces = [paces.start(response) for _ in range(streams)]
        assert paces.window_s == window_s
        for pace in open_paces:
            pace.close()
        assert paces.window_s == MIN_WINDOW_S
        response.close()
