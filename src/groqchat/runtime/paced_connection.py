"""Connections that share the event loop's time for decompression.

A body of a few kilobytes can be decompressed to megabytes. If many of them arrive at the same time,
the event loop would do nothing else for seconds, and would count their bytes only afterwards.
"""

import asyncio
import time
from contextlib import suppress
from typing import Any

from aiohttp.abc import AbstractStreamWriter

from groqchat.http.errors import ApiError, RequestError
from groqchat.runtime.bodies import discard_requests
from groqchat.runtime.phases import WITHOUT_REQUEST
from groqchat.runtime.protocol import HttpConnection

# In one iteration of the event loop: about 20 MB of decompressed bodies.
MAX_PARSING_S = 0.02
# Shorter times are not worth a timer.
MIN_PARSING_S = 0.001
# A compressed body of 4 KB can take as long to parse as a body of 4 MB. Few clients compress their
# requests, so compressed bodies have a limit of their own. They take about a tenth of the time of a
# worker then, or half of it if they are the most expensive ones.
DECOMPRESSED_BYTES_PER_S = 1024 * 1024
DECOMPRESSED_BURST_BYTES = 2 * DECOMPRESSED_BYTES_PER_S

TOO_MANY_COMPRESSED = ApiError(
    status=503,
    code="overloaded",
    message="Too many compressed bodies arrive. Send this one again later, or uncompressed.",
    closes=True,
)


class Pace:
    """What all connections may still parse.

    In each iteration of the event loop, parsing takes MAX_PARSING_S before compressed data waits.
    Bodies are decompressed at DECOMPRESSED_BYTES_PER_S. The rest of one body, up to
    `max_body_bytes`, may exceed that.
    """

    def __init__(self, *, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._spent_s = 0.0
        # Whether compressed data must wait for the next iteration.
        self.is_exhausted = False
        self._has_timer = False
        self._left_bytes = float(DECOMPRESSED_BURST_BYTES)
        self._refilled_s = time.monotonic()

    def add(self, seconds: float) -> None:
        """Count time for parsing."""
        self._spent_s += seconds
        self.is_exhausted = self._spent_s > MAX_PARSING_S
        if self._spent_s > MIN_PARSING_S and not self._has_timer:
            self._has_timer = True
            asyncio.get_running_loop().call_soon(self._reset)

    def take(self, size: int, *, is_first: bool) -> bool:
        """Count the first or further bytes of a body; return False if there are too many."""
        now_s = time.monotonic()
        added = (now_s - self._refilled_s) * DECOMPRESSED_BYTES_PER_S
        self._left_bytes = min(self._left_bytes + added, DECOMPRESSED_BURST_BYTES)
        self._refilled_s = now_s
        if self._left_bytes <= (0 if is_first else -self._max_body_bytes):
            return False
        self._left_bytes -= size
        return True

    def _reset(self) -> None:
        self._spent_s = 0.0
        self.is_exhausted = False
        self._has_timer = False


class PacedConnection(HttpConnection):
    """A connection whose compressed data waits while others are decompressed."""

    __slots__ = ("_counted", "_has_end", "_pace", "_waiting")

    def __init__(self, *arguments: Any, pace: Pace, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pace = pace
        self._waiting: bytes | None = None
        # Whether the client has closed its half of the connection after what waits.
        self._has_end = False
        # The decompressed bytes of the current body that are counted.
        self._counted = 0

    def connection_lost(self, exc: BaseException | None) -> None:
        """Discard received data and requests that have not started."""
        self._waiting = None
        super().connection_lost(exc)
        discard_requests(self)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, in a later iteration if they are compressed and many others are."""
        if self._waiting is not None:
            self._waiting += data
        elif self._pace.is_exhausted and self._may_decompress(data):
            self._wait(data)
        else:
            payload = self._payload
            began_s = time.perf_counter()
            super().data_received(data)
            self._pace.add(time.perf_counter() - began_s)
            if payload is not None and payload.total_compressed_bytes is not None:
                self._count_decompressed(payload)

    def request_started(self, payload: Any, writer: AbstractStreamWriter) -> None:
        """Begin the phase of a request, of whose body the first part may have arrived."""
        super().request_started(payload, writer)
        self._counted = 0
        # An empty body has no such attribute.
        if getattr(payload, "total_compressed_bytes", None) is not None:
            self._count_decompressed(payload)

    def _count_decompressed(self, payload: Any) -> None:
        if payload.exception() is not None:
            return
        is_first = not self._counted
        size, self._counted = payload.total_bytes - self._counted, payload.total_bytes
        if self._pace.take(size, is_first=is_first):
            return
        if payload is self._payload:
            self._fail_body(TOO_MANY_COMPRESSED)
        else:
            # It has arrived completely.
            payload.set_exception(RequestError(TOO_MANY_COMPRESSED))

    def eof_received(self) -> bool:  # type: ignore[override] # aiohttp always closes the connection
        """Respond to the requests that have arrived, although the client sends no more."""
        if self._waiting is None:
            return super().eof_received()
        self._has_end = True
        return True

    def _may_decompress(self, data: bytes) -> bool:
        """Return whether the bytes may be a part of a compressed body.

        Without bytes, aiohttp continues with those that it has not decompressed yet.
        """
        if self.phase == "body" and data:
            return self._payload.total_compressed_bytes is not None
        if self.phase in WITHOUT_REQUEST:
            return b"content-encoding" in data.lower()
        return self.phase != "closing"

    def _wait(self, data: bytes) -> None:
        self._waiting = data
        self._set_reading(is_reading=False)
        self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        data, self._waiting = self._waiting, None
        if data is None or self.phase == "closing":
            return
        self._set_reading(is_reading=True)
        self.data_received(data)
        if self._has_end and self._waiting is None:
            self._has_end = False
            if not self.eof_received() and self.transport is not None:
                self.transport.close()

    def _set_reading(self, *, is_reading: bool) -> None:
        # If aiohttp has paused the transport, it continues itself.
        if self.transport is None or getattr(self, "_reading_paused", False):
            return
        with suppress(RuntimeError):
            (self.transport.resume_reading if is_reading else self.transport.pause_reading)()
