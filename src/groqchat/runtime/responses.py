"""Responses to clients that read slowly, and responses that close their connection."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from groqchat.http.errors import ApiError
from groqchat.http.request_id import REQUEST_ID_HEADER, new_request_id
from groqchat.services.groq.errors import strip_tracebacks

# aiohttp waits for the client after more bytes than this.
PIECE_BYTES = 65_536


class LargeBody(Payload):
    """A body in memory, which all connections that send it share.

    `on_sent` is called when the client has read it, or is gone.
    """

    _value: bytes

    def __init__(self, value: bytes, on_sent: Callable[[], None] | None = None) -> None:
        super().__init__(value)
        self._size = len(value)
        self._on_sent = on_sent

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write one piece after another, and wait while the client does not read."""
        # Slices of bytes would be copies.
        value = memoryview(self._value)
        try:
            for start in range(0, len(value), PIECE_BYTES):
                await writer.write(value[start : start + PIECE_BYTES])
                # A client that reads fast must not delay the others until the end of the body.
                await asyncio.sleep(0)
        except ConnectionError as error:
            # A frame of aiohttp refers to the error that refers to it.
            strip_tracebacks(error)
            raise
        finally:
            if self._on_sent is not None:
                self._on_sent()


class LastResponse(web.Response):
    """A response that closes its connection; `linger` waits until the client has read it."""

    def __init__(self, linger: Callable[[], Awaitable[None]], **options: Any) -> None:
        super().__init__(**options)
        self._linger = linger
        # aiohttp responds to malformed requests with HTTP/1.0 and omits this header.
        self.headers[hdrs.CONNECTION] = "close"
        self.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        """Finish the response."""
        await super().write_eof(data)
        await self._linger()


def raw_response(error: ApiError, error_headers: Mapping[str, str]) -> bytes:
    """Return a complete response to a request that aiohttp has not parsed."""
    headers = {REQUEST_ID_HEADER: new_request_id(), **error.headers(), **error_headers}
    body = orjson.dumps(error.body())
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
