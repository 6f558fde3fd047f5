"""One time limit for many blocks of code, kept by one timer."""

import asyncio
from functools import cached_property
from types import TracebackType
from typing import Any, Self


class Deadlines:
    """Blocks that may each take `limit_s` seconds, as with asyncio.timeout(limit_s).

    That sets a timer for each, and asks the system twice for the process id: more than all else
    around a call of Groq. What lasts equally long ends in the order in which it began, so one
    timer for the oldest will do.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        # In the order in which they end.
        self._running: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> "Deadline":
        """Return the deadline of one block, for a `with` around it, which begins now."""
        return Deadline(self, self.loop.time() + self._limit_s)

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; to ask which one runs is a system call in Python 3.11."""
        return asyncio.get_running_loop()

    def add(self, deadline: "Deadline") -> None:
        """Watch over a block that begins."""
        self._running[deadline] = None
        if self._timer is None:
            self._timer = self.loop.call_at(deadline.when, self._expire)

    def remove(self, deadline: "Deadline") -> None:
        """Leave a block alone from now on."""
        self._running.pop(deadline, None)

    def _expire(self) -> None:
        """Interrupt the blocks whose time is over, and wait for the next."""
        self._timer = None
        now = self.loop.time()
        while self._running:
            oldest = next(iter(self._running))
            if oldest.when > now:
                self._timer = self.loop.call_at(oldest.when, self._expire)
                return
            del self._running[oldest]
            oldest.interrupt()


class Deadline:
    """The time limit of one block: TimeoutError where it takes longer."""

    __slots__ = ("_all", "_cancelling", "_has_expired", "_task", "when")

    def __init__(self, all_of_them: Deadlines, when: float) -> None:
        self._all = all_of_them
        # In the time of the event loop.
        self.when = when
        self._has_expired = False

    @property
    def left_s(self) -> float:
        """The time that is left."""
        return self.when - self._all.loop.time()

    def __enter__(self) -> Self:
        task: asyncio.Task[Any] | None = asyncio.current_task(self._all.loop)
        if task is None:
            raise RuntimeError("a deadline is for a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._all.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._all.remove(self)
        # As asyncio.timeout() has it: a cancellation that came from elsewhere goes on.
        is_late = (
            self._has_expired
            and self._task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        )
        # An error's traceback holds this; it must not lead back to the task that holds the error.
        del self._task
        if is_late:
            raise TimeoutError from error

    def interrupt(self) -> None:
        """End the block."""
        self._has_expired = True
        self._task.cancel()
