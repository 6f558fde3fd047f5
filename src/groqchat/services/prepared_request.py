"""A request that is made ready once and sent many times, each time with another body."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

# Many times the longest answer of any model that Groq lists, and its list of models.
MAX_REPLY_BYTES = 32 * 1024 * 1024
# What a server leaves unread of a body that it refuses; all else has left this process by then.
MAX_UNREAD_BYTES = 64 * 1024
# Responses with another behind them; behind a change of protocols there is none.
INFORMATIONAL = frozenset(range(100, 200)) - {HTTPStatus.SWITCHING_PROTOCOLS}
# Headers that each body has of its own.
OF_THE_BODY = frozenset({"content-length", "transfer-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response read to its end: its headers as they came, its content unpacked."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    content: bytes


class PreparedRequest:
    """One method and URL, with a session's headers, over the session's connections.

    For each request aiohttp builds URL, headers and a dozen objects anew and writes the body in a
    task of its own: a fifth of what a turn costs. Here its pool of connections and its parser do
    their work alone. tests/test_prepared_request.py fails where a later version of aiohttp has
    them otherwise.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        *,
        connect_timeout_s: float | None,
    ) -> None:
        if session.connector is None:
            raise RuntimeError("the session is closed")
        self._connector = session.connector
        self._limits = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        # What aiohttp itself would send, and where to.
        self._request = aiohttp.ClientRequest(
            method,
            url,
            headers=session.headers,
            loop=asyncio.get_running_loop(),
            session=session,
        )
        self._head = _head_of(self._request)

    async def send(self, body: bytes | None = None) -> Reply:
        """Send a body and return what comes back, whatever its status.

        Raises aiohttp.ClientError or OSError for anything but a whole response. The caller's
        deadline bounds it.
        """
        connection = await self._connector.connect(self._request, [], self._limits)
        try:
            reply = await self._exchange(connection, body)
        except BaseException as error:
            _abort(connection)
            if isinstance(error, HttpProcessingError):
                raise aiohttp.ClientConnectionError("what came is not HTTP") from error
            raise
        if reply.status >= HTTPStatus.MULTIPLE_CHOICES and len(body or b"") > MAX_UNREAD_BYTES:
            # Refused, it may be unread: the next request would wait behind the rest.
            _abort(connection)
        connection.release()
        return reply

    async def _exchange(self, connection: Connection, body: bytes | None) -> Reply:
        protocol = connection.protocol
        if protocol is None or protocol.transport is None:
            raise aiohttp.ClientConnectionError("the connection is closed")
        protocol.set_response_params(read_until_eof=True)
        end = b"\r\n" if body is None else b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        protocol.transport.write(self._head + end)
        message, payload = await protocol.read()
        while message.code in INFORMATIONAL:
            # Early hints and the like: the response itself is still to come.
            message, payload = await protocol.read()
        content = await _read(payload)
        return Reply(status=message.code, headers=message.raw_headers, content=content)


def _abort(connection: Connection) -> None:
    """Close a connection at once: what is under way must neither go on nor meet the next."""
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()


async def _read(payload: aiohttp.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while not payload.at_eof():
        part = await payload.readany()
        size += len(part)
        if size > MAX_REPLY_BYTES:
            raise aiohttp.ClientPayloadError(f"more than {MAX_REPLY_BYTES} bytes")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _head_of(request: aiohttp.ClientRequest) -> bytes:
    """Return a request's first line and headers, without those that its body decides."""
    lines = [
        f"{request.method} {request.url.raw_path_qs} HTTP/1.1",
        *(
            f"{name}: {value}"
            for name, value in request.headers.items()
            if name.lower() not in OF_THE_BODY
        ),
    ]
    head = "\r\n".join(lines)
    if max(head.count("\r"), head.count("\n")) >= len(lines):
        raise ValueError("a header holds a line break")
    return f"{head}\r\n".encode()
