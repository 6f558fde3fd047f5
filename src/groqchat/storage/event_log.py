"""The event log: the events of turns in Redis, so that every worker can resume or stop them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from groqchat import sse
from groqchat.storage import keys
from groqchat.storage.claims import Claim, attempt_of, check_attempt, parse_fence_reply
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.keys import Command

# Entries of one read; a follower that is far behind reads again.
READ_ENTRIES = 16
# Requests that may arrive between the start of a worker's first turn and its first read.
RECENT_REQUESTS = 100
# Requests of one read; a worker that is far behind reads again.
READ_REQUESTS = 1000
# The field of a stream entry that contains the events; its name is part of the stored format.
EVENTS_FIELD = b"frames"
FINAL_EVENTS = frozenset({"done", "error"})

# What Redis did with a batch: `lost` if it had lost the earlier events, `superseded` if the turn
# belongs to another attempt.
AppendResult: TypeAlias = Literal["stored", "lost", "superseded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """Events of one turn that are not in Redis yet; `last` is the number of the last event.

    `ttl_s` is the new TTL of the turn's keys, None if it stays unchanged. A turn with a `claim` has
    an Idempotency-Key: another attempt may own it. With `is_repeatable`, another request may run
    the turn again after this last batch.
    """

    turn_id: str
    session_id: str
    events: bytes
    last: int
    is_first: bool
    ttl_s: int | None
    claim: Claim | None = None
    is_last: bool = False
    is_repeatable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSlice:
    """Events after a number.

    `exists` is true if the turn is in Redis, `is_over` if these are its last events.
    """

    events: bytes
    exists: bool
    is_over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """A deleted session: its turns with an id up to `last_turn_id` have no events any more."""

    session_id: str
    last_turn_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequests:
    """What other workers request: ids of turns to stop, and sessions that were deleted.

    `last` is the entry id to continue after; `has_more` is true if further requests may follow.
    """

    stops: Sequence[str]
    deletions: Sequence[Deletion]
    last: str
    has_more: bool = False


class EventLog:
    """One Redis stream for each turn.

    An entry contains several events; the number of its last event is its entry id.
    """

    def __init__(self, batcher: CommandBatcher) -> None:
        self._batcher = batcher

    async def append(self, batches: Sequence[EventBatch]) -> list[AppendResult]:
        """Store events of several turns; return for each what Redis did."""
        commands: list[Command] = []
        positions: list[slice] = []
        now_s = time.time()
        for batch in batches:
            begin = len(commands)
            own = _commands(batch, now_s)
            commands += [batch.claim.fence(own)] if batch.claim else own
            positions.append(slice(begin, len(commands)))
        replies = await self._batcher.transact(commands)
        return [
            _result(batch, replies[position])
            for batch, position in zip(batches, positions, strict=True)
        ]

    async def read(self, turn_id: str, after: int) -> EventSlice:
        """Return the events after a number, at most those of READ_ENTRIES entries.

        Raises TurnLost if the number belongs to an earlier attempt than the events.
        """
        key = keys.turn_key(turn_id)
        found, newest = await self._batcher.transact(
            [
                ("XRANGE", key, f"({after}-0", "+", "COUNT", READ_ENTRIES),
                ("XREVRANGE", key, "+", "-", "COUNT", 1),
            ]
        )
        events = sse.events_after(b"".join(fields[1] for _, fields in found), after)
        if not newest:
            return EventSlice(events=events, exists=False, is_over=False)
        last = sse.last_event(newest[0][1][1])
        number = sse.event_number(last)
        if after:
            check_attempt(turn_id, after, newest=attempt_of(number))
        position = sse.event_number(sse.last_event(events)) if events else after
        return EventSlice(events=events, exists=True, is_over=position >= number and is_final(last))

    async def is_over(self, turn_id: str) -> bool:
        """Return whether a turn has its final event."""
        (newest,) = await self._batcher.transact(
            [("XREVRANGE", keys.turn_key(turn_id), "+", "-", "COUNT", 1)]
        )
        return bool(newest) and is_final(sse.last_event(newest[0][1][1]))

    async def delete(self, turn_ids: Sequence[str]) -> None:
        """Delete the events of turns."""
        await self._batcher.transact(
            [command for turn_id in turn_ids for command in keys.delete_turn(turn_id)]
        )

    async def have_records(self, claims: Sequence[Claim]) -> list[bool]:
        """Return for each claim whether the record of its Idempotency-Key still names its turn."""
        records = await self._batcher.transact([("GET", claim.record_key) for claim in claims])
        return [
            claim.turn_id.encode() in (record or b"")
            for claim, record in zip(claims, records, strict=True)
        ]

    async def request_stop(self, turn_id: str) -> None:
        """Ask the worker that runs a turn to stop it."""
        await self._batcher.transact(keys.request_to_workers(turn=turn_id))

    async def recent_requests(self) -> TurnRequests:
        """Return the latest requests, without stops: these are for turns that are over."""
        (found,) = await self._batcher.transact(
            [("XREVRANGE", keys.STOP_REQUESTS, "+", "-", "COUNT", RECENT_REQUESTS)]
        )
        requests = _parse_requests(found[::-1], "0-0")
        return replace(requests, stops=())

    async def requests(self, after: str) -> TurnRequests:
        """Return the requests after an entry id."""
        (found,) = await self._batcher.transact(
            [("XRANGE", keys.STOP_REQUESTS, f"({after}", "+", "COUNT", READ_REQUESTS)]
        )
        return replace(_parse_requests(found, after), has_more=len(found) == READ_REQUESTS)


def _commands(batch: EventBatch, now_s: float) -> list[Command]:
    key = keys.turn_key(batch.turn_id)
    commands: list[Command] = []
    if batch.events:
        # If the key was lost, these events alone would be a stream without its start.
        only_existing = () if batch.is_first else ("NOMKSTREAM",)
        entry_id = f"{batch.last}-0"
        commands.append(("XADD", key, *only_existing, entry_id, EVENTS_FIELD, batch.events))
    if batch.ttl_s is not None and batch.is_repeatable:
        commands += keys.end_repeatable_turn(batch.turn_id, batch.ttl_s)
    elif batch.ttl_s is not None:
        commands += keys.touch_turn(batch.turn_id, batch.ttl_s)
    if batch.is_first:
        commands += keys.link_to_session(batch.session_id, key, now_s=now_s)
    if batch.is_last and batch.claim is not None:
        commands.append(("UNLINK", keys.requests_key(batch.turn_id)))
    return commands


def _result(batch: EventBatch, replies: Sequence[Any]) -> AppendResult:
    """Return what Redis did with a batch, from the replies to its commands."""
    if batch.claim is not None:
        found = parse_fence_reply(replies[0])
        if found is None:
            return "superseded"
        replies = found.replies
    # XADD replies None, or EXPIRE 0, if the key was lost.
    is_checked = not batch.is_first and (batch.events or batch.ttl_s is not None)
    return "stored" if not is_checked or replies[0] else "lost"


def _parse_requests(entries: Sequence[tuple[bytes, Sequence[bytes]]], after: str) -> TurnRequests:
    stops: list[str] = []
    deletions: list[Deletion] = []
    for _, fields in entries:
        texts = [field.decode() for field in fields]
        values = dict(zip(texts[::2], texts[1::2], strict=False))
        if "turn" in values:
            stops.append(values["turn"])
        elif "session" in values:
            deletions.append(
                Deletion(session_id=values["session"], last_turn_id=values.get("last_turn", ""))
            )
    last = entries[-1][0].decode() if entries else after
    return TurnRequests(stops=stops, deletions=deletions, last=last)


def is_final(event: bytes) -> bool:
    """Return whether an event is the last one of its turn."""
    return bool(event) and sse.parse_event(event)[0] in FINAL_EVENTS
