"""Coalescing of streams: while a stream is not read, the kernel collects what Groq sends.

A write to a client costs many times as much as the parsing of a piece of text. Pieces that arrive
shortly after each other are therefore read, and sent, together.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from aiohttp import ClientResponse

from groqchat.services.groq.aiohttp_internals import pause_reading, resume_reading
from groqchat.sse import EVENT_END

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

# A person does not see a delay of this length. It is the window of a worker with few streams.
MIN_WINDOW_S = 0.02
# With more streams, the window grows, so that all of them together are read about as often as this.
# A core of a small machine makes some 15,000 reads and writes per second.
READS_PER_S = 5000
# Streams whose window ends within this time are resumed together.
TICK_S = 0.01
# The newest interval counts this much in the average of a stream.
NEWEST_WEIGHT = 0.25


class Coalescing:
    """The window of all streams of a process, and the streams that are paused."""

    def __init__(self, max_window_s: float) -> None:
        self._max_window_s = max_window_s
        self._open = 0
        self._paused: deque[tuple[float, ResponseHandler]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.window_s = 0.0

    def start(self, response: ClientResponse) -> "StreamPace":
        """Return the pace of a stream that is about to be read; close it at the end."""
        self._count(1)
        return StreamPace(self, response)

    def time(self) -> float:
        """Return the time of the event loop in seconds."""
        return self._loop.time()

    def end(self) -> None:
        """Forget a stream."""
        self._count(-1)

    def pause(self, response: ClientResponse, until: float) -> None:
        """Do not read a stream until a time of the event loop."""
        paused = pause_reading(response)
        if paused is None:
            return
        self._paused.append((until, paused))
        if self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._resume)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self, change: int) -> None:
        self._open += change
        window_s = max(self._open / READS_PER_S, MIN_WINDOW_S)
        self.window_s = min(window_s, self._max_window_s)

    def _resume(self) -> None:
        due = self._loop.time() + TICK_S / 2
        while self._paused and self._paused[0][0] <= due:
            resume_reading(self._paused.popleft()[1])
        self._timer = self._loop.call_later(TICK_S, self._resume) if self._paused else None


class StreamPace:
    """Decides after each read of a stream whether the next one waits for the window."""

    __slots__ = ("_coalescing", "_interval_s", "_read_at", "_response")

    def __init__(self, coalescing: Coalescing, response: ClientResponse) -> None:
        self._coalescing = coalescing
        self._response = response
        self._read_at: float | None = None
        # The average time between two events.
        self._interval_s: float | None = None

    def pause(self, data: bytes) -> None:
        """Pause the stream after a read, if at least two events are expected within the window.

        The first read never pauses, so the first text is not delayed.
        """
        now = self._coalescing.time()
        before, self._read_at = self._read_at, now
        if before is None:
            return
        interval_s = (now - before) / (data.count(EVENT_END) or 1)
        if self._interval_s is not None:
            interval_s = self._interval_s + (interval_s - self._interval_s) * NEWEST_WEIGHT
        self._interval_s = interval_s
        window_s = self._coalescing.window_s
        if 2 * interval_s <= window_s:
            self._coalescing.pause(self._response, now + window_s)

    def close(self) -> None:
        """End the stream."""
        self._coalescing.end()
