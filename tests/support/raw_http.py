"""Raw connections to the service, for requests that no client library sends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientSession

READ_TIMEOUT_S = 20.0


class RawConnection:
    """A connection, with whole responses as `(status, headers, body)`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *lines: str, body: bytes = b"") -> None:
        """Send a head, without further headers, and a body."""
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def read_to_end(self) -> bytes:
        """Return everything that the service sends until it closes the connection."""
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await self.reader.read()

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Return the next response, which must have a Content-Length."""
        async with asyncio.timeout(READ_TIMEOUT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status_line, *lines = head.strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers["Content-Length"]))
        return int(status_line.split(" ")[1]), headers, body

    async def error(self) -> tuple[int, str, str]:
        """Return status, code and Connection header of the next response, an error."""
        status, headers, body = await self.response()
        error: dict[str, Any] = json.loads(body)["error"]
        assert set(error) == {"message", "type", "code", "param", "request_id"}
        assert error["request_id"] == headers["X-Request-ID"]
        return status, error["code"], headers["Connection"]


@asynccontextmanager
async def connect(api: ClientSession | str) -> AsyncIterator[RawConnection]:
    """Open a connection to the service at the address of its client, or at a URL."""
    address = urlsplit(api if isinstance(api, str) else str(api._base_url))
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return a complete POST request with a JSON body."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
