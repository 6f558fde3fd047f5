"""The reads of history pages that run at the same time, and how many of them are large."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from groqchat.storage.errors import unavailable

# With fewer reads, Redis would wait for the service. If all of them turn out to be large, they need
# about 60 MB before MAX_LARGE_READS applies.
MAX_READS = 32
# A page above this size takes milliseconds to decode, and three times its size in memory.
LARGE_BYTES = 256 * 1024
MAX_LARGE_READS = 4
# One large page takes up to 0.1 s, so this many are read within the default REDIS_TIMEOUT_S.
MAX_WAITING = 16


class PageReads:
    """Limits the reads of pages, so that large pages delay neither small ones nor turns for long.

    Small reads wait for each other, large ones in a short queue of their own.
    """

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(MAX_READS)
        self._large = asyncio.Semaphore(MAX_LARGE_READS)
        self._waiting = 0

    @asynccontextmanager
    async def reading(self) -> AsyncIterator["PageRead"]:
        """Wait until a page may be read, and count it until the context exits."""
        await self._all.acquire()
        read = PageRead(self)
        try:
            yield read
        finally:
            (self._large if read.is_large else self._all).release()

    async def make_large(self, read: "PageRead") -> None:
        """Count a read as large; raise HistoryUnavailable if too many large ones wait."""
        if self._waiting >= MAX_WAITING:
            raise unavailable("too many large pages are read at the same time")
        self._waiting += 1
        try:
            await self._large.acquire()
        finally:
            self._waiting -= 1
        self._all.release()
        read.is_large = True


class PageRead:
    """The read of one page, which may turn out to be large."""

    def __init__(self, reads: PageReads) -> None:
        self._reads = reads
        self.is_large = False

    async def grow(self, size: int) -> None:
        """Note that `size` bytes are read and more follow; wait if the page is large."""
        if size > LARGE_BYTES and not self.is_large:
            await self._reads.make_large(self)
