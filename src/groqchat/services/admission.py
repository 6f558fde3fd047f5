"""How many turns may run at once, and how they end when the service does."""

import asyncio
import logging
from collections.abc import Iterable
from functools import cached_property
from types import TracebackType
from typing import Any, TypeAlias

from groqchat.errors import Overloaded, ShuttingDown

# A turn that is full up is retried by whoever sent it; by then some of the others are done.
OVERLOADED_RETRY_AFTER_S = 1.0
# redis-py swallows a cancellation that meets a finished send, so one may not be enough.
CANCEL_ATTEMPTS = 5
CANCEL_WAIT_S = 0.5

Task: TypeAlias = asyncio.Task[Any]

log = logging.getLogger(__name__)


class Admission:
    """Keeps the tasks of running turns; as a context manager, that of the caller's turn."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: set[Task] = set()
        self._ended: set[Task] = set()
        self._is_closed = False

    def __len__(self) -> int:
        """Return the number of turns under way."""
        return len(self._tasks)

    def check(self) -> None:
        """Raise ShuttingDown or Overloaded where no further turn may begin."""
        if self._is_closed:
            raise ShuttingDown
        if len(self._tasks) >= self._limit:
            raise Overloaded(retry_after_s=OVERLOADED_RETRY_AFTER_S)

    def add(self, task: Task) -> None:
        """Count a task of its own that a turn runs in, until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        if task in self._ended:
            self._ended.discard(task)
            if kind is asyncio.CancelledError:
                task.uncancel()
                raise ShuttingDown from None

    async def close(self, grace_s: float) -> set[Task]:
        """Let no further turn in and return those that do not end within the grace time."""
        self._is_closed = True
        if not self._tasks:
            return set()
        log.info("waiting for %d turn(s) to end", len(self._tasks))
        _, late = await asyncio.wait(self._tasks, timeout=grace_s)
        if late:
            log.warning("ending %d turn(s) that outlasted the grace time", len(late))
        return late

    async def end(self, tasks: Iterable[Task]) -> None:
        """Cancel turns that are still under way."""
        late = set(tasks)
        for _ in range(CANCEL_ATTEMPTS):
            if not late:
                return
            for task in late & self._tasks:
                self._ended.add(task)
                task.cancel()
            _, late = await asyncio.wait(late, timeout=CANCEL_WAIT_S)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop; to ask which one runs is a system call in Python 3.11."""
        return asyncio.get_running_loop()

    def _current_task(self) -> Task:
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a turn runs in a task")
        return task
