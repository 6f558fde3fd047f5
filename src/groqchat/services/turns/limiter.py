"""The turn limiter: how many turns run at once, and how they end at shutdown."""

import asyncio
import logging
from collections.abc import Callable
from functools import cached_property
from types import TracebackType
from typing import Any, TypeAlias

from groqchat.errors import Overloaded, ShuttingDown

# Rejected clients retry after this time; some of the running turns have ended by then.
OVERLOADED_RETRY_AFTER_S = 1.0
# redis-py swallows a cancellation that arrives just after a command was sent, so one may not
# be enough.
CANCEL_ATTEMPTS = 5
CANCEL_WAIT_S = 0.5
# Turns with a task of their own are stopped this long before the end of the grace period, at most
# a quarter of it, so that they can store their answers.
STOP_BEFORE_END_S = 2.0

Task: TypeAlias = asyncio.Task[Any]

log = logging.getLogger(__name__)


class TurnLimiter:
    """Counts running turns. `with limiter:` counts the turn of the current task."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: set[Task] = set()
        self._turn_tasks: set[Task] = set()
        self._cancelled: set[Task] = set()
        self._is_closed = False

    def __len__(self) -> int:
        """Return the number of running turns."""
        return len(self._tasks)

    def check(self) -> None:
        """Raise ShuttingDown or Overloaded if no further turn may start."""
        if self._is_closed:
            raise ShuttingDown
        if len(self._tasks) >= self._limit:
            raise Overloaded(retry_after_s=OVERLOADED_RETRY_AFTER_S)

    def add(self, task: Task) -> None:
        """Count a turn that runs in a task of its own, until the task is done.

        The caller has called `check`.
        """
        self._tasks.add(task)
        self._turn_tasks.add(task)
        task.add_done_callback(self._remove)

    def _remove(self, task: Task) -> None:
        self._tasks.discard(task)
        self._turn_tasks.discard(task)
        self._cancelled.discard(task)

    def __enter__(self) -> None:
        self.check()
        self._tasks.add(self._current_task())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task = self._current_task()
        self._tasks.discard(task)
        if task in self._cancelled:
            self._cancelled.discard(task)
            if kind is asyncio.CancelledError:
                task.uncancel()
                raise ShuttingDown from None

    async def drain(self, grace_s: float, stop_turns: Callable[[], object]) -> None:
        """Reject new turns, wait for running turns, then stop or cancel the remaining ones.

        `stop_turns` stops the turns that run in tasks of their own. Turns that do not end then, and
        the turns of requests, are cancelled.
        """
        self._is_closed = True
        late: set[Task] = set()
        stop_s = min(STOP_BEFORE_END_S, grace_s / 4)
        if self._tasks:
            log.info("waiting for %d running turn(s)", len(self._tasks))
            _, late = await asyncio.wait(self._tasks, timeout=grace_s - stop_s)
        stop_turns()
        if late:
            log.warning("stopping %d turn(s) that are still running", len(late))
        if stopping := late & self._turn_tasks:
            await asyncio.wait(stopping, timeout=stop_s)
        await self._cancel({task for task in late if not task.done()})

    async def _cancel(self, late: set[Task]) -> None:
        for _ in range(CANCEL_ATTEMPTS):
            if not late:
                return
            for task in late & self._tasks:
                self._cancelled.add(task)
                task.cancel()
            _, late = await asyncio.wait(late, timeout=CANCEL_WAIT_S)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, cached because get_running_loop() makes a system call in Python 3.11."""
        return asyncio.get_running_loop()

    def _current_task(self) -> Task:
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a turn must run in a task")
        return task
