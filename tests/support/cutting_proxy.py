"""A proxy in front of Redis that breaks a connection after Redis executed a write."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

READ_BYTES = 65_536


@dataclass
class CuttingProxy:
    """Cuts the connection of the next ZADD to `cut_key`, when `after_write` has returned.

    Redis has executed the transaction then, but its client receives no reply.
    """

    socket: Path
    cut_key: bytes | None = None
    after_write: Callable[[], Awaitable[object]] | None = None
    port: int = 0
    cuts: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["CuttingProxy"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            self.port = server.sockets[0].getsockname()[1]
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._tunnel(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
