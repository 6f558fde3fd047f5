"""Streams of the OpenAI-compatible endpoint without a session: as fast as the client reads."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import ClientResponse, ClientSession

from groqchat.http import event_stream
from groqchat.runtime.server import create_runner
from groqchat.services.openai.relay import GroqEvents
from groqchat.services.turns.turn import Turn
from tests.conftest import Serve
from tests.support.garbage import no_gc
from tests.support.in_process import new_settings, running
from tests.support.raw_groq import DONE, LAST_CHUNK, STREAM_HEAD, RawGroq, chunked, event
from tests.support.streams import wait_until
from tests.test_openai_events import BODY, COMPLETIONS, error_of

# The buffers of the kernel on both sides of the service (by default up to 6 MB for receiving and
# 4 MB for sending on Linux), and less than 1 MB in the service.
MAX_BUFFERED_BYTES = 16 * 1024 * 1024
# Below the limit of one response.
STREAM_BYTES = 48 * 1024 * 1024
PIECE = chunked(event("x" * 16_000))
STREAM = orjson.dumps(BODY)
REQUEST = (
    b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (COMPLETIONS.encode(), len(STREAM), STREAM)
)


@dataclass
class LargeGroq:
    """A Groq server whose streams are larger than all buffers; `sent` counts the bytes of each."""

    sent: dict[int, int] = field(default_factory=dict)
    open: int = 0

    async def respond(self, writer: asyncio.StreamWriter) -> None:
        number = len(self.sent)
        self.sent[number] = 0
        self.open += 1
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        writer.write(STREAM_HEAD)
        try:
            while self.sent[number] < STREAM_BYTES:
                writer.write(PIECE)
                await writer.drain()
                self.sent[number] += len(PIECE)
            writer.write(chunked(event(None, "stop") + DONE) + LAST_CHUNK)
            await writer.drain()
        finally:
            self.open -= 1

    async def wait_until_stalled(self, count: int) -> None:
        """Wait until this number of streams exists and none of them progresses for 0.3 s."""
        unchanged = 0
        before: dict[int, int] = {}
        async with asyncio.timeout(20):
            while len(self.sent) < count or unchanged < 30:
                await asyncio.sleep(0.01)
                unchanged = unchanged + 1 if before == self.sent else 0
                before = dict(self.sent)


@contextmanager
def idle_reader(port: int) -> Iterator[socket.socket]:
    """A client that requests a stream and reads nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(REQUEST)
        yield client


def remaining(kind: type) -> list[Any]:
    """Return the objects of a class that the block of `no_gc` has created and that exist."""
    return [found for found in gc.get_objects() if isinstance(found, kind)]


async def is_clean() -> bool:
    """Return whether no stream of the block of `no_gc` remains."""
    return not remaining(GroqEvents)


@pytest.fixture
async def groq_server() -> AsyncIterator[tuple[LargeGroq, RawGroq]]:
    server = LargeGroq()
    async with RawGroq(server.respond).serve() as raw:
        yield server, raw


async def port_of(api: ClientSession) -> int:
    port = (await api.get("/healthz")).url.port
    assert port is not None
    return port


async def test_idle_readers_stop_the_streams_of_groq(
    serve: Serve, groq_server: tuple[LargeGroq, RawGroq]
) -> None:
    server, raw = groq_server
    port = await port_of(await serve(groq_base_url=raw.url))
    async with AsyncExitStack() as stack:
        for _ in range(8):
            stack.enter_context(idle_reader(port))
        await server.wait_until_stalled(8)
        assert max(server.sent.values()) < MAX_BUFFERED_BYTES


async def test_a_slow_reader_receives_the_whole_stream(
    serve: Serve, groq_server: tuple[LargeGroq, RawGroq]
) -> None:
    _, raw = groq_server
    api = await serve(groq_base_url=raw.url)
    async with api.post(COMPLETIONS, json=BODY) as response:
        size, last = 0, b""
        async for data in response.content.iter_any():
            size, last = size + len(data), data
    assert size > STREAM_BYTES * 0.9
    assert last.endswith(DONE)


def held_bytes(turns: list[Any]) -> int:
    """Return the size of the raw events of turns."""
    return sum(len(event) for turn in turns for event in turn.events._latest)


async def test_a_stream_within_a_session_that_breaks_off_leaves_no_reference_cycle(
    serve: Serve,
) -> None:
    async def break_off(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + PIECE)
        await writer.drain()
        writer.transport.abort()

    async with RawGroq(break_off).serve() as raw:
        api = await serve(groq_base_url=raw.url, groq_max_retries=0)
        with no_gc():
            headers = {"X-Session-Id": "s"}
            async with api.post(COMPLETIONS, json=BODY, headers=headers) as response:
                assert b"completion_unavailable" in await response.read()

            async def is_released() -> bool:
                return not remaining(Turn)

            await wait_until(is_released)


@pytest.mark.parametrize("disconnects", [False, True])
async def test_a_stream_within_a_session_stores_no_event_that_its_client_has_received(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, *, disconnects: bool
) -> None:
    monkeypatch.setattr(event_stream, "INSPECTION_INTERVAL_S", 0.02)
    half, goes_on = asyncio.Event(), asyncio.Event()
    pieces = 200

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for number in range(pieces):
            writer.write(PIECE)
            await writer.drain()
            if number == pieces // 2:
                half.set()
                await goes_on.wait()
        finished.set()
        await writer.wait_closed()

    finished = asyncio.Event()
    with no_gc():
        async with RawGroq(respond).serve() as raw:
            api = await serve(groq_base_url=raw.url)
            response = await api.post(COMPLETIONS, json=BODY, headers={"X-Session-Id": "s"})
            await response.content.readexactly(pieces // 2 * 16_000)
            await half.wait()
            if disconnects:
                response.close()
            goes_on.set()
            if not disconnects:
                await response.content.readexactly((pieces // 2 - 2) * 16_000)
            await finished.wait()

            async def is_released() -> bool:
                return held_bytes(remaining(Turn)) < 10 * len(PIECE)

            await wait_until(is_released)
            assert len(remaining(Turn)) == 1
            response.close()


async def is_idle(api: ClientSession) -> bool:
    """Return whether the service, which has one slot, has no stream."""
    return (await api.get("/openai/v1/models")).status == 200


async def silent(writer: asyncio.StreamWriter) -> None:
    """Send the first event of a stream, and wait for the end of the connection."""
    writer.write(STREAM_HEAD + chunked(event("Hi")))
    await writer.drain()
    await writer.wait_closed()


async def start(api: ClientSession) -> ClientResponse:
    """Start a stream and receive its first event."""
    response = await api.post(COMPLETIONS, json=BODY)
    assert await response.content.readuntil(b"\n\n") == event("Hi")
    return response


async def test_a_relay_uses_a_slot_until_its_client_disconnects(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "INSPECTION_INTERVAL_S", 0.02)
    async with RawGroq(silent).serve() as raw:
        api = await serve(groq_base_url=raw.url, max_concurrent_turns=1)
        response = await start(api)
        rejected = await api.post(COMPLETIONS, json=BODY)
        assert rejected.status == 503
        assert (await api.get("/openai/v1/models")).status == 503
        response.close()
        await wait_until(lambda: is_idle(api))
        assert len(raw.bodies) == 1


async def test_a_client_receives_pings_while_groq_is_silent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "INSPECTION_INTERVAL_S", 0.02)
    monkeypatch.setattr(event_stream, "PING_INTERVAL_S", 0.1)
    async with RawGroq(silent).serve() as raw:
        response = await start(await serve(groq_base_url=raw.url))
        assert await response.content.readuntil(b"\n\n") == b": ping\n\n"
        response.close()


@pytest.mark.parametrize("setting", ["groq_timeout_s", "groq_read_timeout_s"])
async def test_a_relay_ends_with_an_error_after_the_timeouts_of_groq(
    serve: Serve, setting: str
) -> None:
    async with RawGroq(silent).serve() as raw:
        api = await serve(groq_base_url=raw.url, max_concurrent_turns=1, **{setting: 0.3})
        with no_gc():
            for _ in range(3):
                response = await start(api)
                assert error_of(await response.read())["code"] == "completion_timeout"
                await wait_until(lambda: is_idle(api))
            await wait_until(is_clean)


@pytest.mark.parametrize(
    "end",
    [LAST_CHUNK, chunked(b"data: {}"), b"5\r\nab"],
    ids=["no [DONE]", "cut event", "cut chunk"],
)
async def test_a_stream_that_breaks_off_ends_with_an_error(serve: Serve, end: bytes) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event("Hi")) + end)
        writer.close()

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        with no_gc():
            for _ in range(3):
                response = await api.post(COMPLETIONS, json=BODY)
                stream = await response.read()
                assert stream.startswith(event("Hi"))
                assert error_of(stream)["code"] == "completion_unavailable"
            await wait_until(is_clean)


@pytest.mark.parametrize("done", [b"data: [DONE]\n\n", b"data:[DONE]\n\n"])
async def test_a_stream_ends_at_done_and_its_connection_is_reused(
    serve: Serve, done: bytes
) -> None:
    """The text of an answer may contain `[DONE]`."""
    text = event("data: [DONE]\n\n")

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(text + event("!")))
        writer.write(chunked(done))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(LAST_CHUNK)

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        for _ in range(3):
            response = await api.post(COMPLETIONS, json=BODY)
            assert await response.read() == text + event("!") + done
            await asyncio.sleep(0.1)
    # The list of models uses a connection too.
    assert raw.connections <= 2


async def test_an_error_event_of_groq_is_the_last_event(serve: Serve) -> None:
    error = b'event: error\ndata: {"error":{"message":"in org_01abc","status_code":500}}\n\n'

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event("Hi") + error) + LAST_CHUNK)

    async with RawGroq(respond).serve() as raw:
        response = await (await serve(groq_base_url=raw.url)).post(COMPLETIONS, json=BODY)
        assert await response.read() == event("Hi") + error.replace(b"org_01abc", b"org_***")


async def test_a_shutdown_ends_a_relay_with_an_error(redis_url: str) -> None:
    async with RawGroq(silent).serve() as raw:
        runner = create_runner(new_settings(redis_url, raw.url, shutdown_grace_s=1))
        async with running(runner) as url, ClientSession(url) as api:
            response = await start(api)
            cleanup = asyncio.create_task(runner.cleanup())
            assert error_of(await response.read())["code"] == "shutting_down"
            await asyncio.wait_for(cleanup, 10)
