"""Waiters: the chat requests that wait for the turn of an Idempotency-Key, on every worker.

A request that may cancel the turn counts while its worker lives, which renews a lease in Redis. A
request with `on_disconnect: continue` counts whatever happens to its client and its worker.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from groqchat.background import background_task
from groqchat.errors import StorageError
from groqchat.services.turns.registry import TurnRegistry
from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.keys import Command

# How often a worker renews its lease and looks for turns whose waiters' workers have died.
RENEWAL_S = keys.WORKER_LEASE_S / 4
# After an outage of Redis, a running worker renews its lease within two intervals.
DEAD_CHECKS = 3


@dataclass(slots=True)
class Waiter:
    """A request whose client waits for a turn; `turn_id` is None while it is not counted.

    `worker` is the worker whose death ends the request, None if the request counts after it.
    """

    worker: str | None = None
    id: str = field(init=False)
    turn_id: str | None = None

    def __post_init__(self) -> None:
        token = uuid.uuid4().hex
        self.id = f"{self.worker}:{token}" if self.worker else token

    def count(self, turn_id: str) -> tuple[Command, ...]:
        """Return the commands that add the request to those that wait for a turn."""
        lease = (keys.hold_lease(self.worker),) if self.worker else ()
        return (*keys.add_request(turn_id, self.id), *lease)


class Waiters:
    """Counts the requests that wait for a turn, and stops a turn when the last one leaves."""

    def __init__(self, batcher: CommandBatcher, turns: TurnRegistry) -> None:
        self._batcher = batcher
        self._turns = turns
        self._worker = uuid.uuid4().hex
        # The requests of this worker that may cancel their turn.
        self._leased: set[str] = set()
        # The turns of this worker for which only requests of other workers wait, and in how many
        # checks since then none of these workers had a lease.
        self._watched: dict[str, int] = {}
        self._has_work = asyncio.Event()

    @asynccontextmanager
    async def waiting(self, *, may_cancel: bool) -> AsyncIterator[Waiter]:
        """Yield a waiter for one request, which counts until the context exits."""
        waiter = Waiter(worker=self._worker if may_cancel else None)
        if may_cancel:
            self._leased.add(waiter.id)
            self._has_work.set()
        try:
            yield waiter
        finally:
            self._leased.discard(waiter.id)
            if waiter.turn_id is not None:
                # The response does not wait for Redis. The count expires if this call fails.
                with suppress(StorageError):
                    removed = self._batcher.transact(keys.remove_request(waiter.turn_id, waiter.id))
                    removed.add_done_callback(_retrieve_error)

    async def leave(self, waiter: Waiter) -> bool | None:
        """Stop the turn of a waiter if this worker runs it and no other request waits for it.

        Returns whether the turn is stopped, None if the waiter is not counted. If only requests of
        workers that have died wait, the turn is stopped later. Call this when a client that asked
        for `on_disconnect: cancel` has disconnected.
        """
        turn_id, waiter.turn_id = waiter.turn_id, None
        if turn_id is None:
            return None
        self._leased.discard(waiter.id)
        _, others = await self._batcher.transact(keys.remove_request(turn_id, waiter.id))
        turn = self._turns.local(turn_id)
        if turn is None:
            return False
        if others:
            self._watched[turn_id] = 0
            self._has_work.set()
            return False
        turn.stop("disconnected")
        return True

    def renewing(self) -> AbstractAsyncContextManager[None]:
        """Renew the lease of this worker while it is needed, until the context exits."""
        return background_task("renew the lease of waiting requests", self._renew)

    async def _renew(self) -> float:
        await self._has_work.wait()
        with suppress(StorageError):
            if self._leased:
                await self._batcher.transact([keys.hold_lease(self._worker)])
            for turn_id in list(self._watched):
                await self._check(turn_id)
        if not (self._leased or self._watched):
            self._has_work.clear()
        return RENEWAL_S

    async def _check(self, turn_id: str) -> None:
        """Stop a turn if only requests of workers that have died wait for it."""
        turn = self._turns.local(turn_id)
        (names,) = await self._batcher.transact(keys.list_requests(turn_id))
        waiting = [name.decode() for name in names]
        # Without any request, the last one has left another worker, or Redis has lost them.
        if turn is None or turn.is_over or not waiting or any(":" not in each for each in waiting):
            del self._watched[turn_id]
        elif await self._are_alive(waiting):
            self._watched[turn_id] = 0
        else:
            self._watched[turn_id] += 1
            if self._watched[turn_id] >= DEAD_CHECKS:
                del self._watched[turn_id]
                turn.stop("disconnected")

    async def _are_alive(self, waiting: Sequence[str]) -> bool:
        """Return whether one of the requests is here or on a worker that has a lease."""
        if not self._leased.isdisjoint(waiting):
            return True
        workers = {each.partition(":")[0] for each in waiting} - {self._worker}
        leases = [keys.has_lease(worker) for worker in workers]
        return bool(leases) and any(await self._batcher.transact(leases))


def _retrieve_error(call: asyncio.Future[Any]) -> None:
    if not call.cancelled():
        call.exception()
