"""Following the turns of other workers, whose events are read from the event log."""

import asyncio
import time
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from groqchat import sse
from groqchat.errors import HistoryUnavailable, ShuttingDown, TurnLost, TurnNotFound
from groqchat.retry import Backoff
from groqchat.services.turns.turn import FIRST_TEXT_WAIT_S, SECOND_EVENT, raise_early_failure
from groqchat.storage import keys
from groqchat.storage.claims import position_of
from groqchat.storage.event_log import EventLog, EventSlice
from groqchat.storage.message_ids import MICROS_PER_S, micros_of

# How often a follower of another worker's turn polls; less often while there are no events.
FOLLOW_BACKOFF = Backoff(base_s=0.025, cap_s=0.2)
# A worker that lives restores the events of a running turn within this time if Redis lost them.
RESTORE_S = keys.LEASE_RENEWAL_S + 0.2
# How long followers wait while Redis is unavailable, and then until workers restore the events.
OUTAGE_S = 15.0
# The first events of a turn that is younger than this might not have reached Redis.
NEW_TURN_S = 2.0
# A worker writes new events within 0.1 s, if Redis is available and its event loop is not busy.
UNWRITTEN_S = 0.15
# Followers share the events of a read above this size. Many clients can repeat one request with an
# Idempotency-Key, and read its answer slowly.
SHARED_BYTES = 64 * 1024
NO_EVENTS = EventSlice(events=b"", exists=False, is_over=False)


class _Writes:
    """The events of one read, as they are written to clients."""

    __slots__ = ("__weakref__", "parts")

    def __init__(self, events: bytes) -> None:
        self.parts = list(sse.split_writes(events))


class RemoteTurns:
    """Yields the events of turns that other workers run or have run.

    `is_closing` is set at shutdown, when these events end.
    """

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log
        self.is_closing = False
        # By turn and the numbers before the first event and of the last one.
        self._shared: WeakValueDictionary[tuple[str, int, int], _Writes] = WeakValueDictionary()

    async def follow(
        self,
        turn_id: str,
        after: int,
        *,
        waits_for_text: bool,
        waits_for_start: bool,
    ) -> AsyncIterator[bytes] | None:
        """Follow a turn as `TurnRegistry.follow`."""
        first = await self._read_existing(turn_id, after, NEW_TURN_S if waits_for_start else 0.0)
        if waits_for_text:
            first = await self._wait_for_text(turn_id, first)
        if after and not first.is_over and not first.events:
            first = await self._read_end(turn_id, after, first)
        if first.is_over and not first.events:
            return None
        return self._follow(turn_id, after, first)

    async def _read_existing(self, turn_id: str, after: int, max_age_s: float) -> EventSlice:
        """Read a turn's events; wait for a turn up to this age that is not in Redis yet."""
        found = await self._log.read(turn_id, after)
        age_s = time.time() - micros_of(turn_id) / MICROS_PER_S
        while not found.exists and abs(age_s) < max_age_s:
            await asyncio.sleep(FOLLOW_BACKOFF.base_s)
            age_s += FOLLOW_BACKOFF.base_s
            found = await self._log.read(turn_id, after)
        if not found.exists:
            raise TurnNotFound
        return found

    async def _wait_for_text(self, turn_id: str, found: EventSlice) -> EventSlice:
        """Read a turn's events until its first text, at most FIRST_TEXT_WAIT_S."""
        loop = asyncio.get_running_loop()
        end = loop.time() + FIRST_TEXT_WAIT_S
        while found.exists and not found.is_over and loop.time() < end:
            last = sse.last_event(found.events)
            if last and position_of(sse.event_number(last)) >= SECOND_EVENT:
                break
            await asyncio.sleep(FOLLOW_BACKOFF.base_s)
            found = await self._log.read(turn_id, 0)
        raise_early_failure(turn_id, sse.last_event(found.events))
        return found

    async def _read_end(self, turn_id: str, after: int, found: EventSlice) -> EventSlice:
        """Read the events after a number, or the end, which its worker may not have written yet.

        The client may have received the last event from that worker.
        """
        end = asyncio.get_running_loop().time() + UNWRITTEN_S
        while found.exists and not (found.is_over or found.events):
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(FOLLOW_BACKOFF.base_s)
            found = await self._log.read(turn_id, after)
        return found

    async def _follow(self, turn_id: str, after: int, found: EventSlice) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        read_at = exists_at = loop.time()
        patience_s = RESTORE_S
        polls = 0
        while True:
            is_over = found.is_over
            if found.events:
                last = sse.event_number(sse.last_event(found.events))
                writes = self._writes(turn_id, after, last, found.events)
                # The client may read slowly.
                found = NO_EVENTS
                for events in writes.parts:
                    yield events
                after = last
                polls = 0
            if is_over:
                return
            await asyncio.sleep(FOLLOW_BACKOFF.delay_s(polls))
            if self.is_closing:
                raise ShuttingDown
            polls += 1
            try:
                found = await self._log.read(turn_id, after)
            except HistoryUnavailable:
                if loop.time() - read_at > OUTAGE_S:
                    raise
                patience_s = OUTAGE_S
                found = NO_EVENTS
                continue
            read_at = loop.time()
            if found.exists:
                exists_at, patience_s = read_at, RESTORE_S
            elif read_at - exists_at > patience_s:
                raise TurnLost(f"turn {turn_id}")

    def _writes(self, turn_id: str, after: int, last: int, events: bytes) -> _Writes:
        """Return the writes of the events of a turn between two numbers."""
        if len(events) < SHARED_BYTES:
            return _Writes(events)
        position = turn_id, after, last
        writes = self._shared.get(position)
        if writes is None:
            writes = self._shared[position] = _Writes(events)
        return writes
