"""How many turns may run at once, and how they end when the service does."""

import asyncio
import logging
from collections.abc import Callable
from functools import cached_property
from types import TracebackType
from typing import Any, TypeAlias

from groqchat.errors import Overloaded, ShuttingDown

# A turn that is full up is retried by whoever sent it; by then some of the others are done.
OVERLOADED_RETRY_AFTER_S = 1.0
# redis-py swallows a cancellation that meets a finished send, so one may not be enough.
CANCEL_ATTEMPTS = 5
CANCEL_WAIT_S = 0.5
# Before the grace time is over, streams are told that it is; what is left of it is to save.
END_STREAMS_S = 2.0

Task: TypeAlias = asyncio.Task[Any]

log = logging.getLogger(__name__)


class Admission:
    """Keeps the tasks of running turns; as a context manager, that of the caller's turn."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: set[Task] = set()
        self._streams: set[Task] = set()
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
        """Count a task of its own that a stream's turn runs in, until it is done."""
        self._tasks.add(task)
        self._streams.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: Task) -> None:
        self._tasks.discard(task)
        self._streams.discard(task)
        self._ended.discard(task)

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

    async def drain(self, grace_s: float, stop_streams: Callable[[], object]) -> None:
        """Let no further turn in, let those under way end within the grace time, end the rest."""
        self._is_closed = True
        late: set[Task] = set()
        end_s = min(END_STREAMS_S, grace_s / 4)
        if self._tasks:
            log.info("waiting for %d turn(s) to end", len(self._tasks))
            _, late = await asyncio.wait(self._tasks, timeout=grace_s - end_s)
        stop_streams()
        if late:
            log.warning("ending %d turn(s) that outlasted the grace time", len(late))
        if streams := late & self._streams:
            await asyncio.wait(streams, timeout=end_s)
        await self._end({task for task in late if not task.done()})

    async def _end(self, late: set[Task]) -> None:
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
