"""A turn under way: its events so far, those who wait for more, and how it is stopped."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

import orjson

from groqchat.errors import CompletionTimeout, GroqChatError, ShuttingDown
from groqchat.storage import keys

EventName: TypeAlias = Literal["start", "delta", "done", "error"]
# What ends a turn before its answer is whole.
StopReason: TypeAlias = Literal["stopped", "left", "shutdown"]

# Longer than any model takes for its longest answer; nothing waits for ever.
MAX_TURN_S = 900.0
# So much is sent at once: what a reader that stalls holds beside what all share.
MAX_PIECE_BYTES = 64 * 1024


class Turn:
    """The events of one turn as server-sent events, numbered from 1.

    All who follow it read from the same list, so a slow reader costs no memory of its own.
    """

    def __init__(
        self, turn_id: str, session_id: str, *, is_shared: bool = False, is_private: bool = False
    ) -> None:
        self.id = turn_id
        self.session_id = session_id
        # Whether others may ask for the same turn by its Idempotency-Key.
        self.is_shared = is_shared
        # Whether nobody may follow it but who began it.
        self.is_private = is_private
        self.frames: list[bytes] = []
        self.is_over = False
        # Whether the last event is there: `done` or `error`.
        self.has_outcome = False
        self.error: GroqChatError | None = None
        self.stop_reason: StopReason | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._limit: asyncio.Timeout | None = None

    def add(self, name: EventName, data: dict[str, Any] | bytes) -> None:
        """Add an event and wake those who wait for it; `data` is JSON, or to become it."""
        self.has_outcome = name in {"done", "error"}
        json = data if isinstance(data, bytes) else orjson.dumps(data)
        number = len(self.frames) + 1
        self.frames.append(b"id: %d\nevent: %b\ndata: %b\n\n" % (number, name.encode(), json))
        self._wake()

    def add_raw(self, data: bytes) -> None:
        """Add what is sent on as it is, in place of an event."""
        if data:
            self.frames.append(data)
            self._wake()

    def end(self) -> None:
        """Say that no further event comes."""
        self.is_over = True
        self._wake()

    async def follow(self, after: int = 0) -> AsyncIterator[bytes]:
        """Yield the events behind the one with number `after` until the last, many at once."""
        after = min(after, len(self.frames))
        while True:
            if after < len(self.frames):
                piece, after = self.piece(after)
                yield piece
            elif self.is_over:
                return
            else:
                waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(waiting)
                await waiting

    def piece(self, after: int) -> tuple[bytes, int]:
        """Return what to send at once behind an event, and the number of the last one in it."""
        new = self.frames[after : after + 1]
        size = len(new[0])
        # By index: to walk there would take longer with each event that a stream has.
        for at in range(after + 1, len(self.frames)):
            size += len(self.frames[at])
            if size > MAX_PIECE_BYTES:
                break
            new.append(self.frames[at])
        return (new[0] if len(new) == 1 else b"".join(new)), after + len(new)

    async def last_event(self) -> bytes:
        """Wait for the end and return the event that it ended with."""
        async for _ in self.follow():
            pass
        return self.frames[-1]

    def stop(self, reason: StopReason) -> None:
        """End the turn where it stands, unless it has come to its end."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self._interrupt()

    @asynccontextmanager
    async def stoppable(self) -> AsyncIterator[None]:
        """Run a block until it ends, the turn is stopped, or it has taken too long."""
        try:
            async with asyncio.timeout(MAX_TURN_S) as self._limit:
                if self.stop_reason is not None:
                    self._interrupt()
                yield
        except TimeoutError as error:
            if self.stop_reason is None:
                raise CompletionTimeout(f"no end within {MAX_TURN_S:g} s") from error
        finally:
            self._limit = None

    @property
    def kept_s(self) -> int:
        """How long the events are kept when the turn is over, in seconds."""
        if not self.is_shared:
            return keys.TURN_KEPT_S
        failed = bool(self.frames) and b"\nevent: error\n" in self.frames[-1]
        given_up = failed or self.stop_reason == "left"
        return keys.FAILURE_KEPT_S if given_up else keys.IDEMPOTENCY_TTL_S

    def failure(self) -> GroqChatError | None:
        """Return the error that a stop amounts to: one that its client asked for is none."""
        return ShuttingDown() if self.stop_reason == "shutdown" else None

    def _interrupt(self) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()
