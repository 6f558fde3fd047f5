"""The command batcher: transactions of concurrent callers share round trips to Redis."""

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from groqchat.errors import HistoryFailed, StorageError
from groqchat.retry import Backoff, RetryPolicy
from groqchat.storage.errors import storage_error, unavailable
from groqchat.storage.keys import Command
from groqchat.storage.redis_internals import choose_execute

# While one flush waits for its replies, a second flush may be sent; more would only make the
# batches small.
MAX_FLUSHES = 2
# From this number of waiting calls on, two flushes share them: Redis executes one batch while
# Python encodes or decodes the other. This nearly doubles the throughput of a busy store.
OVERLAP_CALLS = 8
# Large enough to spread the cost of a round trip, small enough for early replies.
MAX_BATCH_CALLS = 512
MAX_BATCH_BYTES = 4 * 1024 * 1024
# Calls in one MULTI/EXEC: this halves the work of Redis for each call, and blocks other clients
# for a fraction of a millisecond.
MAX_GROUP_CALLS = 64
# Beyond these limits a call fails at once: it would time out in the queue.
MAX_WAITING_CALLS = 50_000
MAX_WAITING_BYTES = 256 * 1024 * 1024
# After a connection error, a batch is sent again: at once, because the server may have closed an
# idle connection, and then after growing delays, because it may be restarting. The deadline of the
# flush limits their sum.
RETRIES = RetryPolicy(attempts=5, backoff=Backoff(base_s=0.05, cap_s=0.4))

MULTI = hiredis.pack_command(("MULTI",))
EXEC = hiredis.pack_command(("EXEC",))

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Call:
    """The packed commands of one caller, and the future of their replies."""

    packed: bytes
    commands: int
    done: asyncio.Future[list[Any]]
    since: float
    is_resent: bool = False


class ResentReplies(list[Any]):
    """The replies to a transaction that Redis may have executed twice, with others in between."""


class CommandBatcher:
    """Executes transactions, batched with the transactions of concurrent callers.

    Each transaction is atomic; several share one MULTI/EXEC. An error in one transaction fails
    only its own caller: Redis executes the remaining commands, and if Redis rejects a command
    before EXEC, every transaction of that group is sent again on its own. Transactions must be
    idempotent, because a batch is sent again after a connection error (`ResentReplies`). A
    caller that is cancelled does not affect the others.
    """

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._execute = choose_execute()
        self._connections: list[AbstractConnection] = []
        self._waiting: deque[_Call] = deque()
        self._waiting_bytes = 0
        # Counted separately: a finished task stays in the set of tasks for a moment.
        self._active = 0
        # Active flushes that have not removed a batch from the queue yet.
        self._starting = 0
        # The batches of the active flushes.
        self._sent: list[Sequence[_Call]] = []
        # Expires the oldest call; None if there is no call.
        self._timer: asyncio.TimerHandle | None = None
        self._is_unavailable = False
        self._is_closed = False
        self._flushes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the running flushes, each within its deadline; reject further transactions."""
        self._is_closed = True
        while self._flushes:
            await asyncio.wait(self._flushes)
        if self._timer is not None:
            self._timer.cancel()

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, cached because get_running_loop() makes a system call in Python 3.11."""
        return asyncio.get_running_loop()

    def check_open(self) -> None:
        """Raise HistoryFailed after the end of the context: a command would open a connection."""
        if self._is_closed:
            raise HistoryFailed("the history is closed")

    def transact(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Return a future of the raw replies to one transaction.

        The future completes or fails within `timeout_s`. Redis may still execute a transaction that
        failed because of this deadline.
        """
        if self._is_closed:
            self.check_open()
        packed = _pack(commands)
        if len(self._waiting) >= MAX_WAITING_CALLS or self._waiting_bytes > MAX_WAITING_BYTES:
            raise unavailable(f"{len(self._waiting)} calls are waiting already")
        done: asyncio.Future[list[Any]] = self._loop.create_future()
        self._waiting.append(_Call(packed, len(commands), done, time.monotonic()))
        self._waiting_bytes += len(packed)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._expire)
        if self._active < MAX_FLUSHES and len(self._waiting) > self._starting * OVERLAP_CALLS:
            self._active += 1
            self._starting += 1
            flush = self._loop.create_task(self._flush_all())
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)
        return done

    async def _flush_all(self) -> None:
        """Send waiting calls, batch by batch, until the queue is empty."""
        # Flushes that start together share the queue equally.
        share = math.ceil(len(self._waiting) / self._starting)
        self._starting -= 1
        try:
            batch = self._next_batch(min(share, MAX_BATCH_CALLS))
            while batch:
                await self._flush(batch)
                batch = self._next_batch(MAX_BATCH_CALLS)
        finally:
            self._active -= 1

    def _next_batch(self, limit: int) -> list[_Call]:
        """Remove calls from the queue, without those whose callers were cancelled."""
        batch: list[_Call] = []
        size = 0
        while self._waiting and len(batch) < limit and size <= MAX_BATCH_BYTES:
            call = self._waiting.popleft()
            self._waiting_bytes -= len(call.packed)
            if not call.done.done():
                batch.append(call)
                size += len(call.packed)
        return batch

    def _expire(self) -> None:
        """Fail every call whose deadline has passed, and set the timer for the oldest other one."""
        now = time.monotonic()
        expired = now - self._timeout_s
        while self._waiting and self._waiting[0].since <= expired:
            call = self._waiting.popleft()
            self._waiting_bytes -= len(call.packed)
            _fail(call, unavailable(f"not sent within {self._timeout_s:g} s"))
        unanswered = [call for batch in self._sent for call in batch if not call.done.done()]
        times = [self._waiting[0].since] if self._waiting else []
        for call in unanswered:
            if call.since <= expired:
                _fail(call, unavailable(f"no answer within {self._timeout_s:g} s"))
            else:
                times.append(call.since)
        self._timer = None
        if times:
            delay_s = min(times) + self._timeout_s - now
            self._timer = self._loop.call_later(delay_s, self._expire)

    async def _flush(self, batch: Sequence[_Call]) -> None:
        """Send a batch and deliver replies or an error to each caller."""
        self._sent.append(batch)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._transact(batch)
            self._is_unavailable = False
        except (RedisError, OSError) as error:
            self._is_unavailable = True
            for call in batch:
                _fail(call, storage_error(error, timeout_s=self._timeout_s))
        except Exception as error:
            log.exception("sending a batch of commands failed")
            for call in batch:
                _fail(call, HistoryFailed(type(error).__name__))
        finally:
            self._sent.remove(batch)

    async def _transact(self, batch: Sequence[_Call]) -> None:
        """Execute the calls in groups; if a group fails, execute each of its calls alone."""
        groups = [batch[at : at + MAX_GROUP_CALLS] for at in range(0, len(batch), MAX_GROUP_CALLS)]
        alone: list[Sequence[_Call]] = []
        for group, replies in zip(groups, await self._send(groups), strict=True):
            if isinstance(replies[-1], Exception) and len(group) > 1:
                alone += [[call] for call in group]
            else:
                _deliver(group, replies)
        if alone:
            for group, replies in zip(alone, await self._send(alone), strict=True):
                _deliver(group, replies)

    async def _send(self, groups: Sequence[Sequence[_Call]]) -> list[list[Any]]:
        """Return the replies of each group; retry after connection errors.

        After a batch failed, the next one is sent once: every caller would wait for the delays.
        """
        may_retry = not self._is_unavailable
        attempt = 0
        while True:
            try:
                return await self._round_trip(groups)
            except (RedisConnectionError, OSError):
                delay_s = None if attempt else 0.0
                if not may_retry or not await RETRIES.wait(attempt, delay_s=delay_s):
                    raise
            attempt += 1
            for call in itertools.chain(*groups):
                call.is_resent = True

    async def _round_trip(self, groups: Sequence[Sequence[_Call]]) -> list[list[Any]]:
        pool = self._redis.connection_pool
        # Reused between flushes: borrowing from the pool costs as much as a turn's own commands.
        if self._connections:
            connection = self._connections.pop()
        else:
            connection = await pool.get_connection()  # type: ignore[no-untyped-call] # redis-py has no types here
        try:
            request = b"".join(
                [part for group in groups for part in (MULTI, *[c.packed for c in group], EXEC)]
            )
            counts = [sum(call.commands for call in group) + 2 for group in groups]
            replies = iter(await self._execute(connection, request, sum(counts)))
        except BaseException:
            # The next caller must not read replies that are still on their way.
            await connection.disconnect(nowait=True)
            await pool.release(connection)
            raise
        self._connections.append(connection)
        return [list(itertools.islice(replies, count)) for count in counts]


def _pack(commands: Sequence[Command]) -> bytes:
    return b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type] # hiredis' stub accepts only tuples of one element


def _deliver(group: Sequence[_Call], replies: list[Any]) -> None:
    """Deliver the results of its commands, or the first error among them, to each caller."""
    executed = replies[-1]
    if isinstance(executed, Exception):
        # The error of the rejected command is more specific than the error of EXEC.
        first = next(reply for reply in replies if isinstance(reply, Exception))
        for call in group:
            _fail(call, storage_error(first))
        return
    has_errors = any(issubclass(kind, Exception) for kind in set(map(type, executed)))
    begin = 0
    for call in group:
        end = begin + call.commands
        own = executed[begin:end]
        begin = end
        for result in own if has_errors else ():
            if isinstance(result, Exception):
                _fail(call, storage_error(result))
        if not call.done.done():
            call.done.set_result(ResentReplies(own) if call.is_resent else own)


def _fail(call: _Call, error: StorageError) -> None:
    if not call.done.done():
        call.done.set_exception(error)
