"""Commands of many coroutines, sent together: one round trip serves all that ask at once."""

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from groqchat.errors import HistoryFailed, StorageError
from groqchat.storage.bulk import exchange
from groqchat.storage.guard import guarded, storage_error, unavailable

Command: TypeAlias = tuple[str | bytes | int | float, ...]

# While one flush waits for its replies another may go out; more would only make batches small.
MAX_FLUSHES = 2
# From so many calls on, two flushes share what waits: Redis works for one of them while we work on
# the other. A store that is busy saves nearly twice as much so.
OVERLAP_CALLS = 8
# Large enough to spread the cost of a round trip, small enough that replies come soon.
MAX_BATCH_CALLS = 512
MAX_BATCH_BYTES = 4 * 1024 * 1024
# Calls that share one MULTI/EXEC: it halves what Redis has to do for each, and holds up others
# for a fraction of a millisecond.
MAX_GROUP_CALLS = 64
# Past these, waiting would only add to what is late already.
MAX_WAITING_CALLS = 50_000
MAX_WAITING_BYTES = 256 * 1024 * 1024
# A connection that the server closed while idle is noticed at once; a server that restarts
# takes a moment. The deadline of the flush bounds both. Once all of them were in vain, no time is
# lost on waiting until the server answers again.
RETRY_WAITS_S = (0.0, 0.1, 0.2, 0.4)

MULTI = hiredis.pack_command(("MULTI",))
EXEC = hiredis.pack_command(("EXEC",))

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Call:
    """Commands that one coroutine waits for."""

    packed: bytes
    commands: int
    done: asyncio.Future[list[Any]]
    since: float


class Batcher:
    """Runs transactions, coalesced with those of whoever asks at the same time.

    All of a transaction happens or nothing; several may share a MULTI/EXEC. What is wrong with
    one fails for its own caller only: Redis goes on behind a command that fails, and where it
    refuses to queue one, each of its group is sent again alone. Every transaction must be
    idempotent: a flush that fails is sent again as a whole. A caller that leaves takes nothing
    from the others.
    """

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._connections: list[AbstractConnection] = []
        self._waiting: deque[_Call] = deque()
        self._waiting_bytes = 0
        # Counted apart from the tasks: one that has ended is in their set for a moment longer.
        self._active = 0
        # Those of them that have taken no batch yet.
        self._starting = 0
        self._is_away = False
        self._flushes: set[asyncio.Task[None]] = set()

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop; to ask which one runs is a system call in Python 3.11."""
        return asyncio.get_running_loop()

    def transact(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Return what will be the replies to one transaction, raw.

        They are there, or their error is, within twice the deadline of a flush.
        """
        packed = _pack(commands)
        if len(self._waiting) >= MAX_WAITING_CALLS or self._waiting_bytes > MAX_WAITING_BYTES:
            raise unavailable(f"{len(self._waiting)} calls wait already")
        done: asyncio.Future[list[Any]] = self._loop.create_future()
        self._waiting.append(_Call(packed, len(commands), done, time.monotonic()))
        self._waiting_bytes += len(packed)
        if self._active < MAX_FLUSHES and len(self._waiting) > self._starting * OVERLAP_CALLS:
            self._active += 1
            self._starting += 1
            flush = self._loop.create_task(self._flush_all())
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)
        return done

    async def close(self) -> None:
        """Wait for what was sent, each within its deadline; nothing may be asked any more."""
        while self._flushes:
            await asyncio.wait(self._flushes)

    async def _flush_all(self) -> None:
        """Send what waits, batch by batch, until nothing does."""
        # Those that begin together take equal parts of what waits.
        share = math.ceil(len(self._waiting) / self._starting)
        self._starting -= 1
        try:
            batch = self._next_batch(min(share, MAX_BATCH_CALLS))
            while batch:
                await self._flush(batch)
                self._give_up_on_late_calls()
                batch = self._next_batch(MAX_BATCH_CALLS)
        finally:
            self._active -= 1

    async def _flush(self, batch: Sequence[_Call]) -> None:
        """Send a batch and give each caller its replies, or its error."""
        try:
            async with guarded(self._timeout_s):
                await self._transact(batch)
            self._is_away = False
        except StorageError as error:
            self._is_away = True
            for call in batch:
                _fail(call, type(error)(error.detail, retry_after_s=error.retry_after_s))
        except Exception as error:
            log.exception("a flush failed")
            for call in batch:
                _fail(call, HistoryFailed(type(error).__name__))

    def _give_up_on_late_calls(self) -> None:
        """Fail those that have waited for as long as one flush may take."""
        expired = time.monotonic() - self._timeout_s
        while self._waiting and self._waiting[0].since < expired:
            call = self._waiting.popleft()
            self._waiting_bytes -= len(call.packed)
            _fail(call, unavailable(f"no turn within {self._timeout_s:g} s"))

    def _next_batch(self, most: int) -> list[_Call]:
        """Take calls off the queue, leaving out those that nobody waits for any more."""
        batch: list[_Call] = []
        size = 0
        while self._waiting and len(batch) < most and size <= MAX_BATCH_BYTES:
            call = self._waiting.popleft()
            self._waiting_bytes -= len(call.packed)
            if not call.done.done():
                batch.append(call)
                size += len(call.packed)
        return batch

    async def _transact(self, batch: Sequence[_Call]) -> None:
        """Run the calls in as few transactions as may be; those of one that fails, each alone."""
        groups = [batch[at : at + MAX_GROUP_CALLS] for at in range(0, len(batch), MAX_GROUP_CALLS)]
        alone: list[Sequence[_Call]] = []
        for group, replies in zip(groups, await self._send(groups), strict=True):
            if isinstance(replies[-1], Exception) and len(group) > 1:
                alone += [[call] for call in group]
            else:
                _settle(group, replies)
        if alone:
            for group, replies in zip(alone, await self._send(alone), strict=True):
                _settle(group, replies)

    async def _send(self, groups: Sequence[Sequence[_Call]]) -> list[list[Any]]:
        """Return all replies to each group, sending anew what a broken connection took along."""
        for wait_s in () if self._is_away else RETRY_WAITS_S:
            try:
                return await self._round_trip(groups)
            except (RedisConnectionError, OSError):
                await asyncio.sleep(wait_s)
        return await self._round_trip(groups)

    async def _round_trip(self, groups: Sequence[Sequence[_Call]]) -> list[list[Any]]:
        pool = self._redis.connection_pool
        # Kept between flushes: asking the pool costs as much as a turn's own commands.
        if self._connections:
            connection = self._connections.pop()
        else:
            connection = await pool.get_connection()  # type: ignore[no-untyped-call] # redis-py's gap
        try:
            request = b"".join(
                [part for group in groups for part in (MULTI, *[c.packed for c in group], EXEC)]
            )
            counts = [sum(call.commands for call in group) + 2 for group in groups]
            replies = iter(await exchange(connection, request, sum(counts)))
        except BaseException:
            # Replies still under way must not meet the next who reads.
            await connection.disconnect(nowait=True)
            await pool.release(connection)
            raise
        self._connections.append(connection)
        return [list(itertools.islice(replies, count)) for count in counts]


def _pack(commands: Sequence[Command]) -> bytes:
    return b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type] # its stub takes tuples of one


def _settle(group: Sequence[_Call], replies: list[Any]) -> None:
    """Give each caller what EXEC answered to its commands, or the first error among that."""
    executed = replies[-1]
    if isinstance(executed, Exception):
        # What Redis refused to queue tells more than that it executes nothing then.
        wrong = next(reply for reply in replies if isinstance(reply, Exception))
        for call in group:
            _fail(call, storage_error(wrong))
        return
    all_is_well = not any(issubclass(kind, Exception) for kind in set(map(type, executed)))
    begin = 0
    for call in group:
        end = begin + call.commands
        own = executed[begin:end]
        begin = end
        for result in () if all_is_well else own:
            if isinstance(result, Exception):
                _fail(call, storage_error(result))
        if not call.done.done():
            call.done.set_result(own)


def _fail(call: _Call, error: StorageError) -> None:
    if not call.done.done():
        call.done.set_exception(error)
