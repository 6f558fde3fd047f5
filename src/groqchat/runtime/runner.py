"""The runner of the application: connections with limits, and a drain before the end."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from groqchat.errors import Overloaded
from groqchat.http.errors import CLIENT_CLOSED_REQUEST, to_api_error
from groqchat.http.expectations import early_error
from groqchat.http.request_id import REQUEST_ID_HEADER
from groqchat.runtime.connections import ConnectionLimits, Connections
from groqchat.runtime.paced_connection import Pace, PacedConnection
from groqchat.runtime.parse_errors import MAX_PATH_CHARS
from groqchat.runtime.protocol import HttpConnection
from groqchat.runtime.responses import PIECE_BYTES, LargeBody
from groqchat.runtime.static_routes import StaticRoutes, static_routes
from groqchat.runtime.unsent_responses import UnsentResponses
from groqchat.services.groq.errors import strip_tracebacks

# Requests that a client or a proxy sent before it saw the port close arrive within this time.
IDLE_GRACE_S = 1.0
DRAIN_CHECK_S = 0.05
IDEMPOTENCY_KEY = "Idempotency-Key"
# Turns are drained before; this is the time to send their last answers.
SHUTDOWN_TIMEOUT_S = 3.0
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Runner(web.AppRunner):
    """A runner whose connections have limits; `drain` ends them without losing a request."""

    def __init__(
        self,
        app: web.Application,
        limits: ConnectionLimits,
        *,
        error_headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            app, handler_cancellation=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S, **options
        )
        self.connections = Connections(limits, error_headers=error_headers)
        self._options = options
        self._pace = Pace(max_body_bytes=limits.max_body_bytes)
        self._stack = AsyncExitStack()
        self._is_drained = False

    @property
    def server(self) -> web.Server | None:
        """The protocol factory that asyncio calls for each connection."""
        server = super().server
        if server is None:
            return None

        def create() -> HttpConnection:
            return PacedConnection(server, self.connections, pace=self._pace, **self._options)

        return create  # type: ignore[return-value] # asyncio uses it only as a callable

    async def setup(self) -> None:
        """Open the application and watch its connections."""
        await super().setup()
        server = super().server
        if server is not None:
            _track_requests(server, self.connections, static_routes(self.app))
        await self._stack.enter_async_context(self.connections.watching())

    async def cleanup(self) -> None:
        """Close the application and all connections."""
        try:
            await super().cleanup()
        finally:
            await self._stack.aclose()

    async def shutdown(self) -> None:
        """End the running turns, unless `drain` has ended them."""
        if not self._is_drained:
            self._is_drained = True
            await super().shutdown()

    def skip_drain(self) -> None:
        """Do not wait for running turns any more: their tasks are cancelled."""
        self._is_drained = True

    async def drain(self) -> None:
        """Close the port, respond to the requests that are on their way, and end all turns.

        Each response now closes its connection. New turns run as long as requests that were sent
        before the port closed can arrive; later ones are rejected.
        """
        self.connections.start_draining()
        for site in self.sites:
            await site.stop()
        await self._close_idle()
        closing = asyncio.create_task(self._close_idle_repeatedly())
        try:
            await self.shutdown()
        finally:
            closing.cancel()
        await self._close_idle()
        self.connections.reject_incomplete()
        await self._close_idle()

    async def _close_idle(self) -> None:
        """Wait until all connections are closed, at most IDLE_GRACE_S."""
        deadline_s = self.connections.clock() + IDLE_GRACE_S
        while len(self.connections) and self.connections.clock() < deadline_s:
            await asyncio.sleep(DRAIN_CHECK_S)
            self.connections.close_idle(IDLE_GRACE_S)

    async def _close_idle_repeatedly(self) -> None:
        while True:
            self.connections.close_idle(IDLE_GRACE_S)
            await asyncio.sleep(DRAIN_CHECK_S)


def _track_requests(server: web.Server, connections: Connections, routes: StaticRoutes) -> None:
    """Tell each connection when a request starts; close connections with the last response."""
    make_request = server.request_factory
    handle = server.request_handler
    max_taken_bytes = min(PIECE_BYTES, connections.limits.max_body_bytes)

    def start_request(
        message: Any, payload: Any, connection: Any, writer: Any, *rest: Any
    ) -> web.BaseRequest:
        connection.request_started(payload, writer)
        if connections.is_draining:
            message = message._replace(should_close=True)
        request = make_request(message, payload, connection, writer, *rest)
        # Private in aiohttp, whose `read` returns it.
        request._read_bytes = _take_received(payload, max_taken_bytes)  # noqa: SLF001
        return request

    async def respond(request: Any) -> web.StreamResponse:
        connection: Any = request.protocol
        if connection.unsent_bytes():
            try:
                # A client that sends requests without reading gets no further response.
                await request.writer.drain()
            except ConnectionError as error:
                strip_tracebacks(error)
                # Only for the access log: the client is gone.
                return web.Response(status=CLIENT_CLOSED_REQUEST)
        found = routes.get((request.method, request.raw_path))
        response: web.StreamResponse
        try:
            if found is None and len(request.rel_url.raw_path) > MAX_PATH_CHARS:
                response = early_error(request, HTTPStatus.REQUEST_URI_TOO_LONG)
            elif found is None or hdrs.EXPECT in request.headers:
                response = await handle(request)
            else:
                # Private in aiohttp, whose handler begins with this assignment.
                request._match_info, handler = found  # noqa: SLF001
                response = await handler(request)
        except web.HTTPExpectationFailed:
            # aiohttp raises it for an unknown path, before the middlewares.
            response = early_error(request, HTTPStatus.EXPECTATION_FAILED)
        # aiohttp refers to the request, with its body, until the next one of the connection.
        request._read_bytes = None  # noqa: SLF001 - private in aiohttp
        response = _send_in_pieces(request, response, connections.unsent)
        if connections.is_draining or connection.phase == "closing":
            response = connection.last_response(response)
        return response

    server.request_factory = start_request
    server.request_handler = respond


def _take_received(payload: Any, max_bytes: int) -> bytes | None:
    """Return a body up to `max_bytes` that has arrived completely; None if it must be read.

    aiohttp resumes the connection and parses an empty input after each read, which takes 2 % of the
    time of a turn.
    """
    # Private in aiohttp. An empty body has none of them, so it is read.
    is_chunked = getattr(payload, "_http_chunk_splits", True) is not None
    parts = getattr(payload, "_buffer", None)
    if not parts or is_chunked or not payload.is_eof() or payload.exception() is not None:
        return None
    if payload.total_bytes > max_bytes or payload.total_compressed_bytes is not None:
        return None
    body = b"".join(parts)
    parts.clear()
    return body


def _send_in_pieces(
    request: web.BaseRequest, response: web.StreamResponse, unsent: UnsentResponses
) -> web.StreamResponse:
    """Send a large body as fast as the client reads it; reject it if too many wait."""
    body, transport = getattr(response, "body", None), request.transport
    # The first two checks are enough for most responses.
    if (
        not isinstance(body, bytes)
        or len(body) <= PIECE_BYTES
        or transport is None
        or request.method == hdrs.METH_HEAD
        or not isinstance(response, web.Response)
    ):
        return response
    try:
        # The client can repeat a request with a key: its answer is stored.
        is_repeatable = request.method == hdrs.METH_GET or IDEMPOTENCY_KEY in request.headers
        on_sent = unsent.add(transport, body, is_repeatable=is_repeatable)
    except Overloaded as error:
        rejection = to_api_error(error).response()
        rejection.headers[REQUEST_ID_HEADER] = response.headers.get(REQUEST_ID_HEADER, "")
        return rejection
    response.body = LargeBody(body, on_sent)
    return response
