"""A proxy that forwards requests and tunnels connections to one server, whatever host they name."""

import asyncio
import base64
from contextlib import suppress
from dataclasses import dataclass, field

from tests.support.tcp_server import TcpServer

REJECTED = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass
class Proxy(TcpServer):
    """`requests` are the request lines of each connection; `credentials` are `user:password`.

    If it `hangs`, it never answers a CONNECT.
    """

    upstream_port: int
    credentials: str | None = None
    hangs: bool = False
    requests: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Host and port of the proxy."""
        return f"127.0.0.1:{self.port}"

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                line = head.partition(b"\r\n")[0].decode()
                self.requests.append(line)
                if not self._is_authorized(head):
                    writer.write(REJECTED)
                    return
                if self.hangs:
                    await asyncio.Event().wait()
                await self._connect(reader, writer, b"" if line.startswith("CONNECT") else head)
        finally:
            writer.close()

    def _is_authorized(self, head: bytes) -> bool:
        if self.credentials is None:
            return True
        expected = base64.b64encode(self.credentials.encode())
        return b"proxy-authorization: basic " + expected.lower() in head.lower()

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes
    ) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(
            "127.0.0.1", self.upstream_port
        )
        try:
            if head:
                # The upstream server accepts a whole URL in the request line.
                upstream_writer.write(head)
            else:
                writer.write(ESTABLISHED)
            await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))
        finally:
            upstream_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
