"""The private parts of aiohttp's client that groqchat uses: a request template, a connector.

Gain, measured on one turn: for each request aiohttp builds URL, headers and a dozen objects again,
and in Python 3.11 writes the body in a task of its own. A template saves 50 of 143 us of Python
per turn. tests/test_aiohttp_internals.py fails if a new version of aiohttp changes these parts.
GroqClient then uses ClientSession.request(), and a new connection for each request: without the
private parts, nothing prevents a stray response from being matched to the next request. A response
with malformed chunks then ends only at the deadline of the whole, as a response that pauses does.
"""

import asyncio
import inspect
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection

# Many times the size of the longest answer of any model that Groq lists.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
# The bytes of a rejected body that a server may leave unread without delaying the next request.
MAX_UNREAD_BYTES = 64 * 1024
# Responses that another response follows. No response follows a change of protocols.
INFORMATIONAL = frozenset(range(100, 200)) - {HTTPStatus.SWITCHING_PROTOCOLS}
# The error of a stale connection arrives after one round trip; the server may begin with a response
# after a longer time.
MAX_ROUND_TRIP_S = 0.5
# Headers that depend on the body.
BODY_HEADERS = frozenset({"content-length", "transfer-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferedResponse:
    """A response that was read completely: headers as received, content decompressed."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    content: bytes


# Module, name within it, and the parameters that are passed by name or relied on by position.
EXPECTED: Sequence[tuple[str, str, Sequence[str]]] = (
    ("aiohttp", "ClientRequest", ("method", "url", "headers", "loop", "session")),
    ("aiohttp", "TCPConnector.connect", ("self", "req", "traces", "timeout")),
    ("aiohttp", "TCPConnector._get", ("self", "key", "traces")),
    ("aiohttp.client_proto", "ResponseHandler.set_response_params", ("read_until_eof",)),
    ("aiohttp.client_proto", "ResponseHandler.set_exception", ("self", "exc")),
    ("aiohttp.client_proto", "ResponseHandler.read", ()),
    ("aiohttp.client_proto", "ResponseHandler.should_close", ()),
    ("aiohttp.client_proto", "ResponseHandler.read_timeout", ()),
    ("aiohttp.client_proto", "ResponseHandler.start_timeout", ("self",)),
    ("aiohttp.client_proto", "ResponseHandler._reading_paused", ()),
    ("aiohttp.streams", "StreamReader._buffer", ()),
    ("aiohttp.streams", "StreamReader._buffer_offset", ()),
    ("aiohttp.connector", "Connection.protocol", ()),
    ("aiohttp.connector", "Connection.transport", ()),
    ("aiohttp.connector", "Connection.release", ()),
    ("aiohttp.http_exceptions", "HttpProcessingError", ()),
)


def missing_internals() -> list[str]:
    """Return the names of the private parts that the installed aiohttp does not have."""
    return [
        f"{module}.{name}"
        for module, name, parameters in EXPECTED
        if not _exists(module, name, parameters)
    ]


def _exists(module: str, name: str, parameters: Sequence[str]) -> bool:
    try:
        found: object = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    if not parameters:
        return True
    return callable(found) and set(parameters) <= set(inspect.signature(found).parameters)


class Reuse:
    """Whether a request may use a connection that was idle, and when it did."""

    def __init__(self) -> None:
        self.is_allowed = True
        self.used_s: float | None = None

    def end(self) -> bool:
        """Return whether the connection that has just failed was stale; then none is reused.

        A pool can have many stale connections, so retries would meet one after the other.
        """
        is_recent = self.used_s is not None and time.monotonic() - self.used_s < MAX_ROUND_TRIP_S
        was_stale = self.is_allowed and is_recent
        self.is_allowed = self.is_allowed and not was_stale
        return was_stale


# The reuse of the request that the current task sends.
REUSE: ContextVar[Reuse | None] = ContextVar("REUSE", default=None)


def allow_reuse() -> None:
    """Let the next request of the current task, with its retries, use idle connections."""
    REUSE.set(Reuse())


def note_response() -> None:
    """Note that a response has begun, so the connection of the current task is not stale."""
    if reuse := REUSE.get():
        reuse.used_s = None


class GroqConnector(aiohttp.TCPConnector):
    """A connector for responses that break the rules of HTTP.

    It never reuses a connection on which data arrived while it was idle: aiohttp would match a
    stray response to the next request and shift every later response. And a malformed body fails
    at once: aiohttp closes the connection, but its readers would wait until their deadline.
    """

    def __init__(self, *, limit: int, keepalive_timeout: float) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout)
        self._factory = partial(_strict_handler(), loop=self._loop)

    async def _get(self, *args: object) -> "Connection | None":
        reuse = REUSE.get()
        if reuse is not None and not reuse.is_allowed:
            return None
        while True:
            connection: Connection | None = await super()._get(*args)  # type: ignore[arg-type] # passed on unchanged
            if connection is None or connection.protocol is None:
                return connection
            if not connection.protocol.should_close:
                if reuse:
                    reuse.used_s = time.monotonic()
                return connection
            connection.close()


def _strict_handler() -> "type[ResponseHandler]":
    """Return a connection's protocol that reports a malformed body to its reader."""
    # Imported here because the probe has found them.
    from aiohttp.client_proto import ResponseHandler  # noqa: PLC0415 - see above
    from aiohttp.http_exceptions import HttpProcessingError  # noqa: PLC0415 - see above

    class StrictHandler(ResponseHandler):
        def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
            payload = getattr(self, "_payload", None)
            if isinstance(exc, HttpProcessingError) and payload and not payload.is_eof():
                payload.set_exception(aiohttp.ClientPayloadError("the body is not valid HTTP"))
            super().set_exception(exc, *cause)

    return StrictHandler


class RequestTemplate:
    """A request with a fixed method, URL and headers; each `send` supplies another body.

    Uses the connections of the session's connector and aiohttp's response parser.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        *,
        connect_timeout_s: float | None,
        read_timeout_s: float | None = None,
    ) -> None:
        if session.connector is None:
            raise RuntimeError("the session is closed")
        self._connector = session.connector
        self._read_timeout_s = read_timeout_s
        self._limits = aiohttp.ClientTimeout(
            total=None, connect=connect_timeout_s, sock_connect=connect_timeout_s
        )
        # Supplies the headers and the address that aiohttp itself would use.
        self._request = aiohttp.ClientRequest(
            method,
            url,
            headers=session.headers,
            loop=asyncio.get_running_loop(),
            session=session,
        )
        self._head = _head_of(self._request)

    async def send(self, body: bytes | None = None) -> BufferedResponse:
        """Send a body and return the complete response, whatever its status.

        Raises aiohttp.ClientError or OSError if there is no complete response, or if the server
        pauses for `read_timeout_s` after the headers. The caller sets the deadline of the whole.
        """
        connection = await self._connector.connect(self._request, [], self._limits)
        try:
            buffered = await self._exchange(connection, body)
        except BaseException as error:
            _abort(connection)
            from aiohttp.http_exceptions import (  # noqa: PLC0415 - imported if the probe found it
                HttpProcessingError,
            )

            if isinstance(error, HttpProcessingError):
                raise aiohttp.ClientConnectionError("the response is not valid HTTP") from error
            raise
        if buffered.status >= HTTPStatus.MULTIPLE_CHOICES and len(body or b"") > MAX_UNREAD_BYTES:
            # The server may not have read the rejected body; the next request would wait behind it.
            _abort(connection)
        connection.release()
        return buffered

    async def _exchange(self, connection: "Connection", body: bytes | None) -> BufferedResponse:
        protocol = connection.protocol
        if protocol is None or protocol.transport is None:
            raise aiohttp.ClientConnectionError("the connection is closed")
        protocol.set_response_params(read_until_eof=True)
        end = b"\r\n" if body is None else b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        protocol.transport.write(self._head + end)
        message, payload = await protocol.read()
        note_response()
        while message.code in INFORMATIONAL:
            # The final response follows, for example after 103 Early Hints.
            message, payload = await protocol.read()
        if not payload.is_eof():
            _limit_pauses(protocol, self._read_timeout_s)
        content = await read_limited(payload)
        return BufferedResponse(status=message.code, headers=message.raw_headers, content=content)


def limit_pauses(response: aiohttp.ClientResponse, read_timeout_s: float) -> None:
    """Set the timeout of each pause in the rest of a response whose headers have arrived.

    `sock_read` of aiohttp also limits the wait for the headers. Without the private parts, only
    the deadline of the whole response applies.
    """
    connection = response.connection
    protocol = connection.protocol if connection is not None else None
    if protocol is not None and hasattr(protocol, "start_timeout"):
        _limit_pauses(protocol, read_timeout_s)


def _limit_pauses(protocol: "ResponseHandler", read_timeout_s: float | None) -> None:
    # aiohttp resets the timeout when the next request begins.
    protocol.read_timeout = read_timeout_s
    protocol.start_timeout()


def has_tls(response: aiohttp.ClientResponse) -> bool:
    """Return whether a response arrives over TLS."""
    transport = response.connection.transport if response.connection is not None else None
    return transport is not None and transport.get_extra_info("sslcontext") is not None


def pause_reading(response: aiohttp.ClientResponse) -> "ResponseHandler | None":
    """Stop reading from the connection of a response, unless aiohttp has done so or it has ended.

    Returns what `resume_reading` needs. Not for TLS: its layer would read on, and drop what it has
    if the connection breaks.
    """
    connection = response.connection
    protocol = connection.protocol if connection is not None else None
    if protocol is None or protocol.transport is None or _is_paused(protocol):
        return None
    protocol.transport.pause_reading()
    return protocol


def resume_reading(protocol: "ResponseHandler") -> None:
    """Read again, unless aiohttp has paused too, because its buffer is full."""
    transport = protocol.transport
    if transport is not None and not transport.is_closing() and not _is_paused(protocol):
        transport.resume_reading()


def _is_paused(protocol: "ResponseHandler") -> bool:
    # Both are True while aiohttp itself has paused.
    return getattr(protocol, "_reading_paused", True) or getattr(protocol, "_buffer_paused", False)


async def read_available(content: aiohttp.StreamReader) -> bytes:
    """Return what has arrived, or wait for more; empty at the end.

    If the connection breaks, aiohttp's reader raises the error although it has data. This function
    returns the data first, and raises the error when it is called again.
    """
    try:
        return await content.readany()
    except (aiohttp.ClientError, OSError):
        if unread := _take_unread(content):
            return unread
        raise


def _take_unread(content: aiohttp.StreamReader) -> bytes:
    parts = getattr(content, "_buffer", None)
    if not parts:
        return b""
    unread = b"".join(parts)[getattr(content, "_buffer_offset", 0) :]
    parts.clear()
    return unread


async def read_limited(payload: aiohttp.StreamReader) -> bytes:
    """Return the content of a response, at most MAX_RESPONSE_BYTES; else ClientPayloadError."""
    parts: list[bytes] = []
    size = 0
    while not payload.at_eof():
        part = await payload.readany()
        size += len(part)
        if size > MAX_RESPONSE_BYTES:
            raise aiohttp.ClientPayloadError(f"more than {MAX_RESPONSE_BYTES} bytes")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _abort(connection: "Connection") -> None:
    """Close a connection at once, so that no later request reads the rest of this response."""
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()


def _head_of(request: aiohttp.ClientRequest) -> bytes:
    """Return the request line and headers, without the headers that depend on the body."""
    lines = [
        f"{request.method} {request.url.raw_path_qs} HTTP/1.1",
        *(
            f"{name}: {value}"
            for name, value in request.headers.items()
            if name.lower() not in BODY_HEADERS
        ),
    ]
    head = "\r\n".join(lines)
    if max(head.count("\r"), head.count("\n")) >= len(lines):
        raise ValueError("a header contains a line break")
    return f"{head}\r\n".encode()
