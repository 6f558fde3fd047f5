"""Tasks that use the slots of a turn limiter."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from groqchat.errors import Overloaded
from groqchat.services.turns.limiter import TurnLimiter


class Turns:
    """Runs turns of a limiter as the chat service does, and counts their cancellations."""

    def __init__(self, limiter: TurnLimiter) -> None:
        self.limiter = limiter
        self.ended = asyncio.Event()
        self.stopped = asyncio.Event()
        self.cancellations = 0

    async def wait_for(self, event: asyncio.Event, ignored_cancellations: int = 0) -> str:
        while True:
            try:
                await event.wait()
            except asyncio.CancelledError:
                self.cancellations += 1
                if self.cancellations > ignored_cancellations:
                    raise
            else:
                return "complete"

    async def plain(self, ignored_cancellations: int = 0) -> str:
        """Run a turn in the task of its request."""
        with self.limiter:
            return await self.wait_for(self.ended, ignored_cancellations)

    def start(self, ends_with: asyncio.Event) -> asyncio.Task[str]:
        """Start a turn in a task of its own."""
        task = asyncio.create_task(self.wait_for(ends_with))
        self.limiter.add(task)
        return task


async def start_task(work: Awaitable[str]) -> asyncio.Task[str]:
    """Start a task and run it up to its first wait."""

    async def run() -> str:
        return await work

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    return task


def assert_free(limiter: TurnLimiter, running: int) -> None:
    """Check the number of running turns, and that a further turn may start."""
    assert len(limiter) == running
    limiter.check()


def assert_full(limiter: TurnLimiter, running: int) -> None:
    """Check the number of running turns, and that a further turn is rejected."""
    assert len(limiter) == running
    with pytest.raises(Overloaded) as rejection:
        limiter.check()
    assert rejection.value.retry_after_s == 1.0


class Drain:
    """The drain of a limiter, and whether it has stopped the turns with tasks of their own."""

    def __init__(self, limiter: TurnLimiter, grace_s: float, stop: Callable[[], None]) -> None:
        self.stops = 0
        self._stop = stop
        self.task = asyncio.create_task(limiter.drain(grace_s, self._stop_turns))

    def _stop_turns(self) -> None:
        self.stops += 1
        self._stop()
