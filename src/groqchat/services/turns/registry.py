"""The turn registry: follows and stops turns of this worker and, through Redis, of others."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, TypeAlias

import orjson

from groqchat import sse
from groqchat.background import background_task
from groqchat.errors import HistoryFailed, StorageError, TurnNotFound
from groqchat.services.turns.local_turn import LocalTurn
from groqchat.services.turns.remote_turns import RemoteTurns
from groqchat.services.turns.turn import Turn
from groqchat.storage.event_log import AppendResult, EventBatch, EventLog, TurnRequests
from groqchat.storage.messages import STOPPED

# Events that arrive within this time are written to Redis together. With many turns it is longer:
# fewer writes, and still shorter than the longest poll of a follower on another worker.
COALESCE_S = 0.025
MAX_COALESCE_S = 0.1
# Above this number of turns, the time grows in proportion to the number.
BUSY_TURNS = 250
# The maximum number of turns whose events share a transaction.
MAX_GROUP = 64
# At shutdown, each flush writes about sse.MAX_WRITE_BYTES of each turn. The longest answer needs
# fewer flushes than this.
FINAL_FLUSHES = 100
# How often stop requests are read while turns run.
STOP_REQUESTS_POLL_S = 0.1
# A finished turn stays in memory until Redis has its events, but at most for this time.
UNPUBLISHED_RETENTION_S = 60.0
# A worker stops a turn within a fraction of a second, unless it is busy or has died.
STOP_TIMEOUT_S = 5.0

StopResult: TypeAlias = Literal["stopped", "finished", "stopping"]

log = logging.getLogger(__name__)


class TurnRegistry:
    """The turns of this process; writes their events to the event log.

    `encode_error` returns the data of an `error` event; the services that run turns use it.
    """

    def __init__(
        self, event_log: EventLog, encode_error: Callable[[Exception], dict[str, Any]]
    ) -> None:
        self._log = event_log
        self._remote = RemoteTurns(event_log)
        self.encode_error = encode_error
        self._local: dict[str, LocalTurn] = {}
        self._has_turns = asyncio.Event()
        self._is_idle = True
        self._last_request = "0-0"
        self._requests_read_at = 0.0
        self._is_failing = False

    def add(self, turn: Turn) -> None:
        """Make a turn of this process available to followers and stop requests."""
        self._local[turn.id] = LocalTurn(turn)
        self._has_turns.set()

    def local(self, turn_id: str) -> Turn | None:
        """Return a turn of this process that clients may follow; None if there is none."""
        local = self._find(turn_id)
        return None if local is None or local.is_hidden else local.turn

    def _find(self, turn_id: str) -> LocalTurn | None:
        local = self._local.get(turn_id)
        # Another worker runs a turn that was superseded here.
        return None if local is None or local.turn.is_superseded else local

    def shut_down(self) -> None:
        """Stop the turns of this process, and end the events of other workers' turns.

        The followers of these turns receive ShuttingDown and can resume on another worker.
        """
        self._remote.is_closing = True
        for local in list(self._local.values()):
            local.turn.stop("shutdown")

    async def follow(
        self,
        turn_id: str,
        after: int = 0,
        *,
        waits_for_text: bool = False,
        waits_for_start: bool = True,
    ) -> AsyncIterator[bytes] | None:
        """Return an iterator over the events with a higher number than `after`.

        Returns None if the turn is over and has no such events. Raises TurnNotFound if the turn
        does not exist or is private, TurnLost if the number belongs to an earlier attempt at it.
        With `waits_for_text`, waits as `Turn.wait_for_text`; with `waits_for_start`, waits for a
        new turn that is not in Redis yet.
        """
        local = self._find(turn_id)
        if local is not None and local.is_hidden:
            raise TurnNotFound
        if local is not None:
            turn = local.turn
            if waits_for_text:
                await turn.wait_for_text()
            has_all = turn.is_over and turn.position(after) >= len(turn.events)
            return None if has_all else turn.follow(after)
        return await self._remote.follow(
            turn_id,
            after,
            waits_for_text=waits_for_text,
            waits_for_start=waits_for_start,
        )

    async def delete_session(self, session_id: str, *, last_turn_id: str) -> None:
        """Hide the turns of a deleted session with an id up to `last_turn_id`; delete their events.

        A turn whose Idempotency-Key still has its record began after the deletion. The turns run on
        for the clients that are connected.
        """
        own = [
            local
            for local in self._local.values()
            if local.turn.session_id == session_id and local.turn.id <= last_turn_id
        ]
        claims = [local.turn.claim for local in own if local.turn.claim]
        stay: set[str] = set()
        if claims:
            found = zip(claims, await self._log.have_records(claims), strict=True)
            stay = {claim.turn_id for claim, has_record in found if has_record}
        for local in own:
            if local.turn.id not in stay:
                local.mark_deleted()

    async def stop(self, turn_id: str) -> StopResult:
        """Stop a turn on any worker and wait at most STOP_TIMEOUT_S for its end."""
        local = self._find(turn_id)
        events = await self.follow(turn_id)
        if local is not None:
            local.turn.stop("stopped")
        elif not await self._log.is_over(turn_id):
            await self._log.request_stop(turn_id)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                last = sse.last_event(await last_events(events))
        except TimeoutError:
            return "stopping"
        outcome = orjson.loads(sse.parse_event(last)[1])
        return "stopped" if outcome.get("finish_reason") == STOPPED else "finished"

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Write events to Redis until the context exits, then write the remaining events."""
        try:
            async with background_task("publish the events of turns", self._publish):
                yield
        finally:
            with suppress(StorageError):
                for _ in range(FINAL_FLUSHES):
                    await self._flush()
                await self._delete_events()

    async def _publish(self) -> float:
        """Flush once, read the requests of other workers, and remove finished turns."""
        await self._has_turns.wait()
        busy = len(self._local) / BUSY_TURNS
        await asyncio.sleep(min(COALESCE_S * max(busy, 1.0), MAX_COALESCE_S))
        try:
            if self._is_idle:
                # If this read fails, the events must be written all the same from now on.
                self._is_idle = False
                await self._apply(await self._log.recent_requests())
            await self._flush()
            await self._read_requests()
            await self._delete_events()
            self._is_failing = False
        except StorageError as error:
            if not self._is_failing:
                log.warning("cannot write the events of turns to Redis: %s", error)
            self._is_failing = True
        finally:
            self._remove_finished()
        return 0

    async def _flush(self) -> None:
        now = asyncio.get_running_loop().time()
        due = [local for local in self._local.values() if local.is_due(now)]
        for begin in range(0, len(due), MAX_GROUP):
            group = due[begin : begin + MAX_GROUP]
            try:
                await self._append(group, now)
            except HistoryFailed:
                # One failing command fails the whole call: find the turn that caused it.
                for local in group:
                    await self._append_alone(local, now)

    def _supersede(self, local: LocalTurn) -> None:
        """Stop a turn that another attempt runs, without a further write."""
        local.turn.supersede()
        if self._local.get(local.turn.id) is local:
            del self._local[local.turn.id]

    async def _append(self, group: Sequence[LocalTurn], now: float) -> None:
        batches = [local.unpublished(now) for local in group]
        results = await self._log.append(batches)
        for local, batch, result in zip(group, batches, results, strict=True):
            self._record(local, batch, result, now)

    def _record(
        self, local: LocalTurn, batch: EventBatch, result: AppendResult, now: float
    ) -> None:
        if result == "stored":
            local.mark_published(batch, now)
        elif result == "superseded":
            self._supersede(local)
        else:
            local.mark_lost()
            # The reason may be a deletion of the session.
            self._requests_read_at = 0.0

    async def _append_alone(self, local: LocalTurn, now: float) -> None:
        batch = local.unpublished(now)
        try:
            (result,) = await self._log.append([batch])
        except HistoryFailed as error:
            # Redis has these events already, or the key has another type: do not retry.
            log.info("Redis rejected events of turn %s: %s", batch.turn_id, error)
            local.mark_published(batch, now)
        else:
            self._record(local, batch, result, now)

    async def _read_requests(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._requests_read_at < STOP_REQUESTS_POLL_S:
            return
        while True:
            requests = await self._log.requests(self._last_request)
            await self._apply(requests)
            if not requests.has_more:
                break
        self._requests_read_at = now

    async def _apply(self, requests: TurnRequests) -> None:
        for turn_id in requests.stops:
            if turn_id in self._local:
                self._local[turn_id].turn.stop("stopped")
        for each in requests.deletions:
            # These turns may have been published after the deletion.
            await self.delete_session(each.session_id, last_turn_id=each.last_turn_id)
        self._last_request = requests.last

    async def _delete_events(self) -> None:
        stale = [local for local in self._local.values() if local.has_stale_events]
        if stale:
            await self._log.delete([local.turn.id for local in stale])
            for local in stale:
                local.has_stale_events = False

    def _remove_finished(self) -> None:
        now = asyncio.get_running_loop().time()
        for local in list(self._local.values()):
            if not local.turn.is_over:
                continue
            local.over_since = local.over_since or now
            is_expired = now - local.over_since > UNPUBLISHED_RETENTION_S
            # A deletion of the session must find a turn that was published after it.
            has_read = self._requests_read_at > local.published_at
            is_complete = local.is_published or local.is_deleted
            is_done = has_read and is_complete and not local.has_stale_events
            is_ours = not (local.turn.is_private or local.turn.is_superseded)
            if is_done or is_expired or not is_ours:
                del self._local[local.turn.id]
        if not self._local:
            self._has_turns.clear()
            self._is_idle = True


async def last_events(events: AsyncIterator[bytes] | None) -> bytes:
    """Wait for the end of a stream and return what it yielded last."""
    last = b""
    if events is not None:
        async for found in events:
            last = found
    return last
