"""Event streams: server-sent events to one client, with pings and a write timeout."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from operator import attrgetter
from typing import cast

import orjson
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import StreamWriter

from groqchat import sse
from groqchat.background import background_task
from groqchat.errors import GroqChatError
from groqchat.http.error_models import ErrorEvent
from groqchat.http.errors import error_event_data
from groqchat.http.request_id import REQUEST_ID_HEADER, request_id
from groqchat.models import ChatResponse, DeltaEvent, StartEvent
from groqchat.services.groq.errors import strip_tracebacks
from groqchat.services.turns.turn import Follower

SSE_HEADERS = {
    hdrs.CONTENT_TYPE: f"{sse.CONTENT_TYPE}; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    # Without this header, nginx buffers the events.
    "X-Accel-Buffering": "no",
}
# The OpenAPI description of these streams.
STREAM_DESCRIPTION = (
    "Server-sent events, numbered by `id`: `start`, any number of `delta` with a `text`, then "
    "`done` with the fields of the response without `stream`, or `error` with the error and its "
    "`status`. An `error` has no `id` if only this connection failed, but not the turn."
)
EVENT_MODELS = (StartEvent, DeltaEvent, ChatResponse, ErrorEvent)
# With this id, a client can resume or stop the turn.
TURN_ID_HEADER = "X-Turn-ID"
NO_EXTRA_HEADERS: Mapping[str, str] = {}
# Many load balancers close a connection after a minute without data, some sooner.
PING_INTERVAL_S = 15
INSPECTION_INTERVAL_S = 1.0
# As for other responses (`runtime/unsent_responses.py`). An answer is one event of up to 2 MB.
MAX_UNSENT_BYTES = 128 * 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _OpenStream:
    """A stream that is being sent, and its state at the last check."""

    request: web.Request
    response: web.StreamResponse
    transport: asyncio.Transport
    task: asyncio.Task[object]
    writes: int = 0
    is_writing: bool = False
    is_disconnected: bool = False
    seen_writes: int = 0
    idle_inspections: int = 0
    seen_sent_bytes: int = 0
    stalled_inspections: int = 0

    @property
    def unsent_bytes(self) -> int:
        """The number of bytes that wait because the client reads too slowly."""
        return self.transport.get_write_buffer_size()

    @property
    def sent_bytes(self) -> int:
        """The number of bytes that do not wait any more. A large event is sent in many parts."""
        writer = cast("StreamWriter", self.request.writer)
        return writer.output_size - self.unsent_bytes

    def push(self, event: bytes) -> bool:
        """Write an event at once, if the client has read the earlier ones."""
        if self.transport.is_closing() or self.unsent_bytes:
            return False
        writer = cast("StreamWriter", self.request.writer)
        try:
            # Without a drain, this coroutine never waits.
            writer.write(event, drain=False).send(None)
        except StopIteration:
            self.writes += 1
            return True
        except ConnectionError as error:
            strip_tracebacks(error)
        return False


class EventStreams:
    """Sends event streams; one timer finds the idle, stalled and disconnected ones."""

    def __init__(self, *, write_timeout_s: float) -> None:
        self._write_timeout_s = write_timeout_s
        self._open: set[_OpenStream] = set()

    async def send(
        self,
        request: web.Request,
        events: AsyncIterator[bytes],
        *,
        on_disconnect: Callable[[], object] = lambda: None,
        headers: Mapping[str, str] = NO_EXTRA_HEADERS,
    ) -> web.StreamResponse:
        """Send all events; call `on_disconnect` if the client disconnects before the last one.

        If `events` raises another error than ConnectionError, it is sent as a final `error` event.
        """
        response = web.StreamResponse(headers={**headers, **SSE_HEADERS})
        if request.version < HttpVersion11:
            # An HTTP/1.0 client recognises the end of the body by the end of the connection.
            response.force_close()
        response.headers[REQUEST_ID_HEADER] = request_id.get()
        stream: _OpenStream | None = None
        try:
            await response.prepare(request)
            stream = self._register(request, response)
            if isinstance(events, Follower):
                events.push = stream.push
            await _send_all(stream, events)
        except ConnectionError as error:
            # It refers to this frame, and aiohttp's frames refer to it: a cycle with the answer.
            strip_tracebacks(error)
            on_disconnect()
        except asyncio.CancelledError:
            if stream is None:
                raise
            if not stream.is_disconnected:
                # A shutdown: the client has not read its last events in time.
                stream.transport.abort()
                raise
            stream.task.uncancel()
            on_disconnect()
        finally:
            if stream is not None:
                self._open.discard(stream)
            if isinstance(events, Follower):
                events.push = None
        return response

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Send pings and end stalled streams until the context exits."""
        return background_task("check open streams", self._inspect_all)

    def _register(self, request: web.Request, response: web.StreamResponse) -> _OpenStream:
        task = asyncio.current_task()
        transport = request.transport
        if task is None or transport is None:
            raise ConnectionResetError("the client disconnected before the first event")
        stream = _OpenStream(request=request, response=response, transport=transport, task=task)
        self._open.add(stream)
        return stream

    async def _inspect_all(self) -> float:
        self._limit_unsent_bytes()
        idle = [stream for stream in list(self._open) if self._inspect(stream)]
        # Together, because each may have to wait.
        await asyncio.gather(*map(_ping, idle))
        return INSPECTION_INTERVAL_S

    def _inspect(self, stream: _OpenStream) -> bool:
        """End a stream whose client disconnected or stopped reading; return if it needs a ping."""
        is_idle = stream.writes == stream.seen_writes
        stream.idle_inspections = stream.idle_inspections + 1 if is_idle else 0
        stream.seen_writes = stream.writes
        has_unread = stream.is_writing or stream.unsent_bytes > 0
        is_stalled = has_unread and self._is_stalled(stream)
        if is_stalled:
            log.info("disconnecting a client that does not read its stream")
            stream.transport.abort()
        if is_stalled or stream.transport.is_closing():
            stream.is_disconnected = True
            stream.task.cancel()
            return False
        idle_s = stream.idle_inspections * INSPECTION_INTERVAL_S
        # A ping would only wait behind what the client has not read.
        if has_unread or not (idle_s >= PING_INTERVAL_S or has_ended_sending(stream.request)):
            return False
        stream.idle_inspections = 0
        return True

    def _limit_unsent_bytes(self) -> None:
        """Disconnect those clients that have most to read, until the rest fits into the limit."""
        total = sum(stream.unsent_bytes for stream in self._open)
        if total <= MAX_UNSENT_BYTES:
            return
        streams = sorted(self._open, key=attrgetter("unsent_bytes"), reverse=True)
        while total > MAX_UNSENT_BYTES:
            stream = streams.pop(0)
            total -= stream.unsent_bytes
            log.info("cut off a stream with %d bytes that are not read", stream.unsent_bytes)
            # The inspection that follows ends the stream.
            stream.transport.abort()

    def _is_stalled(self, stream: _OpenStream) -> bool:
        """Return whether the client has read nothing for the write timeout."""
        has_read = stream.sent_bytes > stream.seen_sent_bytes
        stream.seen_sent_bytes = stream.sent_bytes
        stream.stalled_inspections = 0 if has_read else stream.stalled_inspections + 1
        return stream.stalled_inspections * INSPECTION_INTERVAL_S >= self._write_timeout_s


async def _ping(stream: _OpenStream) -> None:
    try:
        async with asyncio.timeout(INSPECTION_INTERVAL_S):
            await stream.response.write(sse.PING)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        # The next inspection ends the stream, unless it has ended just now (RuntimeError).
        strip_tracebacks(error)
    except Exception:
        log.exception("a ping failed")


async def _send_all(stream: _OpenStream, events: AsyncIterator[bytes]) -> None:
    response = stream.response
    try:
        async for event in events:
            stream.is_writing = True
            await response.write(event)
            stream.is_writing = False
            stream.writes += 1
    except ConnectionError:
        raise
    except Exception as error:
        if isinstance(error, GroqChatError):
            log.warning("a stream ended with an error: %s (%s)", error.code, error.detail)
        else:
            log.exception("an event stream failed")
        stream.is_writing = True
        data = orjson.dumps(error_event_data(error))
        await response.write(sse.encode_event(data, name="error"))
    stream.is_writing = True
    _announce_end(stream.request)
    await response.write_eof()


def _announce_end(request: web.Request) -> None:
    """Tell the connection that the last bytes of the response follow."""
    announce = getattr(request.protocol, "response_ending", None)
    if announce is not None:
        announce()


def has_ended_sending(request: web.Request) -> bool:
    """Return whether the client has closed its half of the connection, or all of it.

    The difference shows only when something is sent: a client that is gone resets the connection.
    """
    return bool(getattr(request.protocol, "has_ended_sending", False))
