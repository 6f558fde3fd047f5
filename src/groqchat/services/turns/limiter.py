"""The turn limiter: how many turns and followers exist at once, and how they end at shutdown."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import Any, TypeAlias

from groqchat.errors import Overloaded, ShuttingDown
from groqchat.services.turns.running_bodies import RunningBodies

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
    """Counts whatever waits for Groq or holds a connection for a turn: each uses one slot.

    `with limiter:` uses a slot for the current task, which waits for Groq itself. `with
    limiter.following():` uses a slot for a request that follows a turn. A turn that this request
    starts shares the slot, which is free when both have ended.
    """

    def __init__(self, limit: int, *, max_body_bytes: float = math.inf) -> None:
        self._limit = limit
        self.bodies = RunningBodies(max_body_bytes)
        # One task for each slot in use.
        self._slots: set[Task] = set()
        # The turns that share the slot of a request, by the task of the request.
        self._shared: dict[Task, Task] = {}
        # Tasks that end soon after the turns are stopped: turns, and the requests that follow them.
        self._stoppable: set[Task] = set()
        # The requests among them.
        self._following: set[Task] = set()
        self._cancelled: set[Task] = set()
        self._is_closed = False

    def __len__(self) -> int:
        """Return the number of slots in use."""
        return len(self._slots)

    def check(self) -> None:
        """Raise ShuttingDown or Overloaded if there is no free slot."""
        if self._is_closed:
            raise ShuttingDown
        if len(self._slots) >= self._limit:
            raise Overloaded(retry_after_s=OVERLOADED_RETRY_AFTER_S)

    def check_turn(self) -> None:
        """Raise ShuttingDown or Overloaded if the current task may not start a turn."""
        if self._is_closed or self._current_task() not in self._slots:
            self.check()

    def add(self, task: Task) -> None:
        """Count a turn that runs in a task of its own, until the task is done.

        The caller has called `check_turn`.
        """
        request = self._current_task()
        shared = self._shared.get(request)
        if request in self._slots and (shared is None or shared.done()):
            self._shared[request] = task
        elif request in self._slots or request not in self._stoppable:
            self._slots.add(task)
        # Otherwise a turn that shares a slot starts a part of itself.
        self._stoppable.add(task)
        task.add_done_callback(self._remove)

    def _remove(self, task: Task) -> None:
        self._slots.discard(task)
        self._stoppable.discard(task)
        self._cancelled.discard(task)
        self._shared.pop(task, None)

    def __enter__(self) -> None:
        self.check()
        self._slots.add(self._current_task())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task = self._current_task()
        self._slots.discard(task)
        if self._shared:
            self._release_to_turn(task)
        if task in self._cancelled:
            self._cancelled.discard(task)
            if kind is asyncio.CancelledError:
                task.uncancel()
                raise ShuttingDown from None

    @contextmanager
    def following(self) -> Iterator[None]:
        """Use a slot for a request that follows a turn, until its response is sent."""
        with self:
            task = self._current_task()
            self._stoppable.add(task)
            self._following.add(task)
            try:
                yield
            finally:
                self._stoppable.discard(task)
                self._following.discard(task)

    def _release_to_turn(self, request: Task) -> None:
        """Leave the slot of a request that has ended to the turn that it started."""
        turn = self._shared.pop(request, None)
        if turn is not None and not turn.done():
            self._slots.add(turn)

    async def drain(self, grace_s: float, stop_turns: Callable[[], object]) -> None:
        """Reject new turns, wait for running turns, then stop or cancel the remaining ones.

        `stop_turns` stops the turns that run in tasks of their own, and ends the events of the
        turns of other workers. Turns and followers that do not end then, and the turns of requests,
        are cancelled.
        """
        self._is_closed = True
        late: set[Task] = set()
        stop_s = min(STOP_BEFORE_END_S, grace_s / 4)
        if self._slots:
            log.info("waiting for %d turn(s) and follower(s)", len(self._slots))
            _, late = await asyncio.wait(self._slots | self._stoppable, timeout=grace_s - stop_s)
        stop_turns()
        if late:
            log.warning("stopping %d turn(s) and follower(s)", len(self._slots))
        if stopping := late & self._stoppable:
            await asyncio.wait(stopping, timeout=stop_s)
        await self._cancel(_running(late - self._following))
        # The turns have added their last event now, and their followers send it.
        if following := _running(late & self._following):
            await asyncio.wait(following, timeout=CANCEL_WAIT_S)
        await self._cancel(_running(following))

    async def _cancel(self, late: set[Task]) -> None:
        for _ in range(CANCEL_ATTEMPTS):
            if not late:
                return
            for task in late & (self._slots | self._stoppable):
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


def _running(tasks: set[Task]) -> set[Task]:
    return {task for task in tasks if not task.done()}
