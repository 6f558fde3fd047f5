"""Server-sent events to one client: pings, a reader that stalls, a client that leaves."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import orjson
from aiohttp import HttpVersion11, hdrs, web

from groqchat import logs
from groqchat.background import beside
from groqchat.error_models import ErrorEvent
from groqchat.errors import GroqChatError, Overloaded
from groqchat.http.errors import event_error
from groqchat.http.request_id import REQUEST_ID_HEADER
from groqchat.models import ChatAnswer, DeltaEvent, StartEvent
from groqchat.services.turn import Turn

HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    # Else nginx would hold events back until it has a bufferful.
    "X-Accel-Buffering": "no",
}
# For the description of the API.
STREAM_NOTE = (
    "Events, numbered by `id`: `start`, any number of `delta` with a `text` each, then `done` with "
    "what a plain answer holds, or `error` with the error and its `status`."
)
EVENTS = (StartEvent, DeltaEvent, ChatAnswer, ErrorEvent)
NO_HEADERS: Mapping[str, str] = {}
# Balancers close what says nothing for a minute, some sooner.
PING_S = 15
PING = b": ping\n\n"
LOOK_EVERY_S = 1.0

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Open:
    """A stream being sent, and what was last seen of it."""

    response: web.StreamResponse
    transport: asyncio.Transport
    task: asyncio.Task[object]
    writes: int = 0
    is_writing: bool = False
    has_left: bool = False
    seen_writes: int = 0
    still_looks: int = 0


class EventStreams:
    """Sends streams, and looks after all of them with one timer instead of one each."""

    def __init__(self, *, stall_s: float, limit: int) -> None:
        self._stall_s = stall_s
        self._limit = limit
        self._open: set[_Open] = set()

    async def send(
        self,
        request: web.Request,
        events: AsyncIterator[bytes],
        *,
        on_leave: Callable[[], object] = lambda: None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> web.StreamResponse:
        """Send events until their end; `on_leave` is called where the client does not wait for it.

        An error that `events` raises becomes an event itself, the last one.
        """
        response = web.StreamResponse(headers={**headers, **HEADERS})
        if request.version < HttpVersion11:
            # Only the end of the connection tells such a client of the end.
            response.force_close()
        response.headers[REQUEST_ID_HEADER] = logs.request_id.get()
        stream: _Open | None = None
        try:
            await response.prepare(request)
            stream = self._opened(request, response)
            await _send_all(stream, events)
        except ConnectionError:
            on_leave()
        except asyncio.CancelledError:
            if stream is None or not stream.has_left:
                raise
            stream.task.uncancel()
            on_leave()
        finally:
            if stream is not None:
                self._open.discard(stream)
        return response

    def check(self) -> None:
        """Raise Overloaded where so many streams are open that no turn should be followed again."""
        if len(self._open) >= self._limit:
            raise Overloaded

    @asynccontextmanager
    async def looked_after(self) -> AsyncIterator[None]:
        """Look after open streams within the block."""
        async with beside(self._look_for_ever()):
            yield

    def _opened(self, request: web.Request, response: web.StreamResponse) -> _Open:
        task = asyncio.current_task()
        transport = request.transport
        if task is None or transport is None:
            raise ConnectionResetError("the client left before its stream began")
        stream = _Open(response=response, transport=transport, task=task)
        self._open.add(stream)
        return stream

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for stream in list(self._open):
                await self._look_at(stream)

    async def _look_at(self, stream: _Open) -> None:
        """End a stream whose client is gone or reads no more; ping one that is quiet."""
        is_still = stream.writes == stream.seen_writes
        stream.still_looks = stream.still_looks + 1 if is_still else 0
        stream.seen_writes = stream.writes
        still_s = stream.still_looks * LOOK_EVERY_S
        stalled = stream.is_writing and still_s >= self._stall_s
        if stalled:
            log.info("dropping a client that does not read its stream")
            stream.transport.abort()
        if stalled or stream.transport.is_closing():
            stream.has_left = True
            stream.task.cancel()
        elif not stream.is_writing and still_s >= PING_S:
            stream.still_looks = 0
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await stream.response.write(PING)


async def _send_all(stream: _Open, events: AsyncIterator[bytes]) -> None:
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
        if not isinstance(error, GroqChatError):
            log.exception("a stream failed")
        stream.is_writing = True
        body = orjson.dumps(event_error(error))
        await response.write(b"event: error\ndata: " + body + b"\n\n")
    stream.is_writing = True
    await response.write_eof()


async def outcome_while_there(request: web.Request, turn: Turn) -> bytes:
    """Return a turn's last event, stopping the turn where its client leaves."""
    over = asyncio.create_task(turn.last_event())
    while not over.done():
        await asyncio.wait([over], timeout=LOOK_EVERY_S)
        if request.transport is None or request.transport.is_closing():
            turn.stop("left")
    return over.result()
