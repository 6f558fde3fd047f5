"""A proxy in front of Redis that breaks a connection after Redis executed a write."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.tcp_server import TcpServer

READ_BYTES = 65_536


@dataclass
class CuttingProxy(TcpServer):
    """Cuts the connection of the next ZADD to `cut_key`, when `after_write` has returned.

    Redis has executed the transaction then, but its client receives no reply.
    """

    socket: Path
    cut_key: bytes | None = None
    after_write: Callable[[], Awaitable[object]] | None = None
    cuts: int = 0

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(str(self.socket))
        replies = asyncio.create_task(_copy(redis_reader, writer))
        try:
            while data := await reader.read(READ_BYTES):
                if self.cut_key and self.cut_key in data and b"ZADD" in data:
                    self.cut_key = None
                    self.cuts += 1
                    replies.cancel()
                    await asyncio.gather(replies, return_exceptions=True)
                    redis_writer.write(data)
                    # The reply shows that Redis has executed the transaction.
                    await redis_reader.read(READ_BYTES)
                    if self.after_write is not None:
                        await self.after_write()
                    return
                redis_writer.write(data)
        finally:
            replies.cancel()
            redis_writer.close()
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
