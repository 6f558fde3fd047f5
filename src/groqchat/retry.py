"""Retries: how often, after which delay, and within which deadline."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

# More doublings than any cap needs; prevents an overflow.
MAX_DOUBLINGS = 32
# Redis confirms a write within a few milliseconds. A turn that has waited less than this so far
# needs no limit of its own for its next operation: the deadline of the operation is enough.
NO_WAIT_S = 0.02
# A turn that has used up its budget still waits this time for its answer to be saved: Redis may be
# available again.
MIN_SAVE_WAIT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential delays: `base_s`, doubled for each attempt up to `cap_s`.

    Then `jitter` lengthens the delay by a random share, up to `jitter` times the delay, so that
    clients that failed together do not retry together.
    """

    base_s: float
    cap_s: float
    jitter: float = 0.0

    def delay_s(self, attempt: int) -> float:
        """Return the delay after a failed attempt, in seconds; the first attempt is 0."""
        delay_s = min(self.base_s * 2.0 ** min(attempt, MAX_DOUBLINGS), self.cap_s)
        return delay_s * random.uniform(1, 1 + self.jitter)  # noqa: S311 - not used for security


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often an operation is attempted, and the delays between the attempts.

    Call `wait` in the `except` block of a loop, and raise the error if it returns False.
    """

    attempts: int
    backoff: Backoff

    async def wait(self, attempt: int, *, delay_s: float | None = None) -> bool:
        """Wait after a failed attempt; return False at once if it was the last one.

        The first attempt is 0. `delay_s` replaces the delay of the backoff.
        """
        if attempt >= self.attempts - 1:
            return False
        await asyncio.sleep(self.backoff.delay_s(attempt) if delay_s is None else delay_s)
        return True


class RetryBudget:
    """Limits the retries of a process to a share of its requests, plus a minimum per second.

    If every request retried during an outage, the retries would multiply the load on a server that
    is failing. The budget is a bucket of tokens: a request adds `share` of a token, a second adds
    `min_per_s` tokens, and a retry takes one.
    """

    def __init__(
        self,
        *,
        share: float,
        min_per_s: float,
        capacity: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._min_per_s = min_per_s
        self._capacity = capacity
        self._clock = clock
        # At first, as much as two seconds without requests add.
        self._tokens = min(2 * min_per_s, capacity)
        self._refilled_at = clock()

    def add_request(self) -> None:
        """Count a request, whether it succeeds or not."""
        self._tokens = min(self._tokens + self._share, self._capacity)

    @property
    def allows_retry(self) -> bool:
        """Whether `take` would succeed."""
        now = self._clock()
        added = (now - self._refilled_at) * self._min_per_s
        self._tokens = min(self._tokens + added, self._capacity)
        self._refilled_at = now
        return self._tokens >= 1

    def take(self) -> bool:
        """Use the budget for one retry; return False if it is exhausted."""
        if not self.allows_retry:
            return False
        self._tokens -= 1
        return True

    def refund(self) -> None:
        """Return the token of a retry that was not sent."""
        self._tokens = min(self._tokens + 1, self._capacity)


class WaitBudget:
    """The time that one turn may wait for Redis; `with budget:` measures one operation."""

    __slots__ = ("_began", "_limit_s", "_waited_s")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._waited_s = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waited_s += time.monotonic() - self._began

    @property
    def left_s(self) -> float | None:
        """The time for the next operation in seconds, None if it needs no limit of its own."""
        if self._waited_s < NO_WAIT_S:
            return None
        return max(self._limit_s - self._waited_s, MIN_SAVE_WAIT_S)


class Deadlines:
    """Time limits of `limit_s` seconds for many blocks of code, with one timer for all of them.

    Works as asyncio.timeout(limit_s), which creates a timer for each block and takes 5 us: more
    than everything else around a request to Groq. Equal limits expire in the order in which their
    blocks began, so one timer for the oldest is enough.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        # In the order in which they expire.
        self.running: dict[Deadline, None] = {}
        self.timer: asyncio.TimerHandle | None = None

    def start(self) -> "Deadline":
        """Return the deadline of a `with` block, which must begin immediately."""
        return Deadline(self, self.loop.time() + self.limit_s)

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, cached because get_running_loop() makes a system call in Python 3.11."""
        return asyncio.get_running_loop()

    def watch(self) -> None:
        """Set the timer for the oldest block, which has just begun."""
        oldest = next(iter(self.running))
        self.timer = self.loop.call_at(oldest.when, self._expire)

    def _expire(self) -> None:
        """Interrupt the blocks whose time is over and set the timer for the next block."""
        self.timer = None
        now = self.loop.time()
        while self.running:
            oldest = next(iter(self.running))
            if oldest.when > now:
                self.watch()
                return
            del self.running[oldest]
            oldest.interrupt()


class Deadline:
    """The time limit of one block, which raises TimeoutError if the block runs longer."""

    __slots__ = ("_cancelling", "_deadlines", "_has_expired", "_task", "when")

    def __init__(self, deadlines: Deadlines, when: float) -> None:
        self._deadlines = deadlines
        # In the time of the event loop.
        self.when = when
        self._has_expired = False

    @property
    def left_s(self) -> float:
        """The time that is left, in seconds."""
        return self.when - self._deadlines.loop.time()

    def __enter__(self) -> Self:
        deadlines = self._deadlines
        task: asyncio.Task[Any] | None = asyncio.current_task(deadlines.loop)
        if task is None:
            raise RuntimeError("a deadline works only inside a task")
        self._task = task
        self._cancelling = task.cancelling()
        deadlines.running[self] = None
        if deadlines.timer is None:
            deadlines.watch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deadlines.running.pop(self, None)
        # As in asyncio.timeout(): a cancellation from elsewhere propagates.
        is_late = (
            self._has_expired
            and self._task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        )
        # The error's traceback references this object; a reference from here to the task, which
        # references the error, would be a cycle.
        del self._task
        if is_late:
            raise TimeoutError from error

    def interrupt(self) -> None:
        """Cancel the task of the block."""
        self._has_expired = True
        self._task.cancel()
