"""Coalescing of streams: pieces that arrive shortly after each other are sent together.

A write to a client costs many times as much as the parsing of a piece of text. While a connection
without TLS is not read, the kernel collects what Groq sends, which saves the reads, too.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from aiohttp import ClientResponse

from groqchat.services.groq.aiohttp_internals import has_tls, pause_reading, resume_reading
from groqchat.sse import EVENT_END

# A person does not see a delay of this length. It is the window of a worker with few streams.
MIN_WINDOW_S = 0.02
# With more streams, the window grows, so that all of them together are read about as often as this.
# A core of a small machine makes some 15,000 reads and writes per second.
READS_PER_S = 5000
# So much data at once is worth a write of its own, and a pause would only slow the stream down.
LARGE_BYTES = 16 * 1024
# Streams whose window ends within this time are read together.
TICK_S = 0.01
# The newest interval counts this much in the average of a stream.
NEWEST_WEIGHT = 0.25


class Coalescing:
    """The window of all streams of a process, and the streams that wait for its end."""

    def __init__(self, max_window_s: float) -> None:
        self._max_window_s = max_window_s
        self._open = 0
        # The times of the event loop at which windows end, and what to do then.
        self._ends: deque[tuple[float, Callable[[], object]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.window_s = 0.0

    def start(self, response: ClientResponse) -> "StreamPace":
        """Return the pace of a stream that is about to be read; close it at the end."""
        self.count(1)
        return StreamPace(self, response, self._loop)

    def count(self, change: int) -> None:
        """Change the number of streams."""
        self._open += change
        window_s = max(self._open / READS_PER_S, MIN_WINDOW_S)
        self.window_s = min(window_s, self._max_window_s)

    def call_at(self, end: float, callback: Callable[[], object]) -> None:
        """Call a function at the end of a window; all streams share one timer."""
        self._ends.append((end, callback))
        if self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._call)

    def _call(self) -> None:
        # First, so that an error in a callback does not stop the others for ever.
        self._timer = self._loop.call_later(TICK_S, self._call) if self._ends else None
        due = self._loop.time() + TICK_S / 2
        while self._ends and self._ends[0][0] <= due:
            self._ends.popleft()[1]()


class StreamPace:
    """Decides after each read of a stream whether the next one waits for the end of the window."""

    __slots__ = ("_coalescing", "_has_tls", "_interval_s", "_loop", "_read_at", "_response")

    def __init__(
        self, coalescing: Coalescing, response: ClientResponse, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._coalescing = coalescing
        self._response = response
        self._has_tls = has_tls(response)
        self._loop = loop
        self._read_at: float | None = None
        # The average time between two events.
        self._interval_s: float | None = None

    async def wait(self, data: bytes) -> None:
        """Delay the next read after a read, if at least two events are expected in the window.

        The first read never delays the next one, so the first text arrives at once.
        """
        now = self._loop.time()
        before, self._read_at = self._read_at, now
        if before is None or len(data) >= LARGE_BYTES:
            return
        interval_s = (now - before) / (data.count(EVENT_END) or 1)
        if self._interval_s is not None:
            interval_s = self._interval_s + (interval_s - self._interval_s) * NEWEST_WEIGHT
        self._interval_s = interval_s
        window_s = self._coalescing.window_s
        if 2 * interval_s > window_s:
            return
        if not self._has_tls:
            paused = pause_reading(self._response)
            if paused is not None:
                self._coalescing.call_at(now + window_s, partial(resume_reading, paused))
        elif self._response.connection is not None:
            end: asyncio.Future[None] = self._loop.create_future()
            self._coalescing.call_at(now + window_s, partial(_finish, end))
            await end

    def close(self) -> None:
        """End the stream."""
        self._coalescing.count(-1)


def _finish(end: asyncio.Future[None]) -> None:
    if not end.done():
        end.set_result(None)
