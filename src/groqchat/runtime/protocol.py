"""One connection of a client: its phase, its deadlines, and errors outside of the application."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from groqchat.http.errors import ApiError, RequestError, api_error_for_status, to_api_error
from groqchat.http.request_id import NO_REQUEST_ID, REQUEST_ID_HEADER, new_request_id, request_id
from groqchat.runtime.bodies import discard_unread, waiting_bytes
from groqchat.runtime.connections import MAX_HEAD_BYTES, MAX_LINGERING, Connections
from groqchat.runtime.parse_errors import HEAD_TOO_LARGE, INCOMPLETE_BODY, parse_error
from groqchat.runtime.phases import Phase
from groqchat.runtime.responses import LastResponse, raw_response
from groqchat.runtime.socket_options import limit_kernel_buffer, send_with_end

# A client that still sends its request can read the error during this time. If the connection was
# closed at once, its kernel would discard the error.
LINGER_S = 2.0
END_OF_HEAD = b"\r\n\r\n"

log = logging.getLogger(__name__)


class HttpConnection(web.RequestHandler):
    """A connection that knows its phase; its limits are in `Connections`."""

    __slots__ = (
        "_all",
        "_clock",
        "_ended",
        "_failure",
        "_is_lingering",
        "_payload",
        "_pipelined",
        "_writer",
        "_written_bytes",
        "buffered_bytes",
        "has_ended_sending",
        "last_sent_s",
        "on_pace_bytes",
        "on_pace_s",
        "phase",
        "received_bytes",
        "searched_s",
        "seen_sent_bytes",
        "since_s",
    )

    def __init__(self, server: web.Server, connections: Connections, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._all = connections
        self._clock = connections.clock
        # The bytes of a request that is not complete.
        self.buffered_bytes = 0
        self._payload: Any = None
        self._is_lingering = False
        self._failure: RequestError | None = None
        self._ended: asyncio.Future[None] | None = None
        # The response in progress, and the bytes of the earlier ones.
        self._writer: AbstractStreamWriter | None = None
        self._written_bytes = 0
        self.has_ended_sending = False
        self.phase: Phase = "silent"
        self.received_bytes = 0
        self.since_s = self.on_pace_s = self.last_sent_s = self._clock()
        self.on_pace_bytes = 0
        self.searched_s = 0.0
        self.seen_sent_bytes = 0
        # Private in aiohttp. Without it, only the first of several pipelined requests is answered
        # if the client has closed its half of the connection.
        self._pipelined: Sequence[tuple[Any, Any]] = getattr(self, "_messages", ())

    def unsent_bytes(self) -> int:
        """Return the number of bytes that wait because the client reads too slowly."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def sent_bytes(self) -> int:
        """Return the number of bytes of responses that do not wait any more."""
        current = 0 if self._writer is None else self._writer.output_size
        return self._written_bytes + current - self.unsent_bytes()

    @property
    def address(self) -> str:
        """The IP address of the client."""
        peer = self.peername
        return peer[0] if isinstance(peer, tuple) else ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        super().connection_made(transport)
        limit_kernel_buffer(transport)
        self._all.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop counting the connection."""
        self._all.remove(self)
        self._all.lingering -= self._is_lingering
        self._is_lingering = False
        self._writer = None
        self._set_phase("closing")
        self._end_lingering()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, and count those of incomplete requests."""
        phase = self.phase
        if phase == "closing":
            return
        if phase == "running" or not data:
            super().data_received(data)
            # aiohttp may have decompressed the next part of a body, or parsed the next request.
            is_more = data or self._payload is not None or self._pipelined
            if is_more and self.phase in {"body", "running"}:
                self._count(len(data))
        elif phase == "discarding":
            super().data_received(data)
            if self._payload.is_eof():
                self._set_phase("idle")
            return
        else:
            if phase not in {"head", "body"}:
                self.phase = "head"
                self.since_s = self._clock()
                self.received_bytes = 0
            super().data_received(data)
            self.received_bytes += len(data)
            # Afterwards: a handler that waits for this request starts before the size is checked.
            self._count(len(data))
        if self.phase == "body" and self._payload.is_eof():
            self._set_phase("running")

    def request_started(self, payload: Any, writer: AbstractStreamWriter) -> None:
        """Note that the headers of a request are complete."""
        if self._writer is not None:
            self._written_bytes += self._writer.output_size
        self._writer = writer
        if payload.is_eof():
            self._set_phase("running")
        else:
            self._payload = payload
            self.phase = "body"
            self.since_s = self.on_pace_s = self._clock()
            self.on_pace_bytes = self.received_bytes
            self._count(0)

    def log_access(
        self, request: web.BaseRequest, response: web.StreamResponse, time: float | None
    ) -> None:
        """Log a response that is complete; aiohttp calls this method even without a log."""
        try:
            super().log_access(request, response, time)
        finally:
            if self._all.is_draining and self._closes_after_response():
                # The head of the response may be older than the drain, so the client does not know.
                response.force_close()
            # aiohttp refers to the response until the next request of the connection.
            if getattr(response, "body", None) is not None:
                response.body = None  # type: ignore[attr-defined] # a type check takes longer
            self._response_ended()

    def response_ending(self) -> None:
        """Prepare for the last bytes of a stream: the end of the connection arrives with them.

        Otherwise a proxy may use the connection for another request in between.
        """
        if self._closes_after_response() and self.transport is not None:
            send_with_end(self.transport)

    def _closes_after_response(self) -> bool:
        return self._all.is_draining and not self._pipelined

    def _response_ended(self) -> None:
        if self.phase == "closing":
            return
        is_complete = self.phase != "body" or self._payload.is_eof()
        self._set_phase("idle" if is_complete else "discarding")
        if self.has_ended_sending and not self._pipelined:
            self.close()

    def eof_received(self) -> bool:  # type: ignore[override] # aiohttp always closes the connection
        """Respond to the requests that have arrived, although the client sends no more."""
        self.has_ended_sending = True
        self._end_lingering()
        if self.phase == "body":
            self._fail_body(INCOMPLETE_BODY)
        elif self.phase == "head":
            # The request may be complete, but its handler has not started yet.
            self._loop.call_soon(self._reject_incomplete_head)
        elif self.phase in {"silent", "idle", "closing"}:
            return len(self._pipelined) > 0
        return True

    def reject(self, error: ApiError) -> None:
        """Send an error, unless a response is on its way, and close the connection."""
        if self.phase == "body":
            self._fail_body(error)
            return
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.phase == "running":
            self._set_phase("closing")
            transport.abort()
            return
        transport.write(raw_response(error, self._all.error_headers))
        self._loop.call_later(LINGER_S, transport.abort)
        if self._all.lingering >= MAX_LINGERING:
            self.drop()
            return
        self._all.lingering += 1
        self._is_lingering = True
        self._set_phase("closing")
        with suppress(OSError):  # The client may be gone.
            transport.write_eof()

    def drop(self) -> None:
        """Close the connection without a response."""
        self._set_phase("closing")
        self.force_close()

    def has_partial_head(self) -> bool:
        """Return whether an idle connection has a part of a request; it cannot go on then."""
        # Private in aiohttp. Without it, only KEEPALIVE_TIMEOUT_S ends such a connection. aiohttp
        # ignores empty lines between requests. They complete a part, or make it invalid.
        parser = getattr(self, "_parser", None)
        if parser is None or self._pipelined:
            return False
        try:
            messages, *_ = parser.feed_data(END_OF_HEAD)
        except HttpProcessingError:
            return True
        return bool(messages)

    def abort(self) -> None:
        """Close the connection and discard what the client has not read."""
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp passes it; the text may quote the request
    ) -> web.StreamResponse:
        """Return the last response, for a request that is malformed or whose middleware failed."""
        if isinstance(exc, HttpProcessingError):
            new_request_id()
            error = parse_error(exc, status)
            log.info("malformed HTTP request rejected: %s", type(exc).__name__)
        else:
            if request_id.get() == NO_REQUEST_ID:
                new_request_id()
            error = to_api_error(exc if isinstance(exc, Exception) else RuntimeError())
            path = request.rel_url.raw_path
            log.error("%s %s failed", request.method, path, exc_info=exc or True)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has started already")
        response = self._closing(error.response())
        response.headers[REQUEST_ID_HEADER] = request_id.get()
        if isinstance(exc, HttpProcessingError):
            response.headers.update(self._all.error_headers)
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log an unexpected error; a malformed body that nobody reads is none."""
        if not isinstance(options.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **options)

    def last_response(self, response: web.StreamResponse) -> web.StreamResponse:
        """Close the connection after a response; the request may not be read to its end."""
        if self._all.is_draining and not response.prepared:
            response.force_close()
        if self.phase == "closing" and isinstance(response, web.Response):
            return self._closing(response)
        return response

    def _closing(self, response: web.Response) -> web.Response:
        return LastResponse(
            self.linger, status=response.status, body=response.body, headers=response.headers
        )

    async def linger(self) -> None:
        """Discard what the client still sends, until it has read the response."""
        self._set_phase("closing")
        if self._failure is not None:  # Its frames contain the bytes of the body.
            self._failure.with_traceback(None)
        transport = self.transport
        if transport is None or transport.is_closing() or self.has_ended_sending:
            return
        self._ended = self._loop.create_future()
        with suppress(TimeoutError, OSError):
            transport.write_eof()
            async with asyncio.timeout(LINGER_S):
                await self._ended

    def _set_phase(self, phase: Phase) -> None:
        """Begin a phase in which no request arrives."""
        self._all.buffered_bytes -= self.buffered_bytes
        self.buffered_bytes = 0
        self.phase = phase
        self.since_s = self._clock()
        if phase != "discarding":
            self._payload = None

    def _count(self, count: int) -> None:
        """Count received bytes, or as many as they are when they are decompressed."""
        if self._payload is not None:
            count = max(count, self._payload.total_bytes - self.buffered_bytes)
        elif self.phase == "running" and self._pipelined:
            count = max(count, waiting_bytes(self._pipelined) - self.buffered_bytes)
        self.buffered_bytes += count
        self._all.buffered_bytes += count
        if (
            self._all.buffered_bytes > self._all.limits.max_buffered_bytes
            or self.received_bytes > MAX_HEAD_BYTES
        ):
            self._loop.call_soon(self._check_size)

    def _check_size(self) -> None:
        is_incomplete_head = self.phase == "head" and not self._pipelined
        if is_incomplete_head and self.received_bytes > MAX_HEAD_BYTES:
            self.reject(HEAD_TOO_LARGE)
        self._all.free_bytes()

    def _reject_incomplete_head(self) -> None:
        if self.phase == "head":
            self.reject(api_error_for_status(400))

    def _fail_body(self, error: ApiError) -> None:
        """Raise an error in the handler that reads the body."""
        payload = self._payload
        self._set_phase("closing")
        discard_unread(payload)
        self._failure = RequestError(error)
        payload.set_exception(self._failure)
        # aiohttp would wait for the rest of the body.
        payload.feed_eof()

    def _end_lingering(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
