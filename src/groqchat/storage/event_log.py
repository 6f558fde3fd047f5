"""The event log: the events of turns in Redis, so that every worker can resume or stop them."""

from collections.abc import Sequence
from dataclasses import dataclass

from groqchat import sse
from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.keys import Command

# Entries of one read; a follower that is far behind reads again.
READ_ENTRIES = 16
# Stop requests that a worker may have missed; each concerns one turn and is a second old at most.
MAX_STOP_REQUESTS = 1000
# The field of a stream entry that contains the events; its name is part of the stored format.
EVENTS_FIELD = b"frames"
FINAL_EVENTS = frozenset({"done", "error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """Events of one turn that are not in Redis yet; `last` is the number of the last event.

    `ttl_s` is the new TTL of the turn's keys, None if it stays unchanged. With `is_attempt`, an
    earlier attempt at the turn may have left events; with `is_repeatable`, another request may run
    the turn again after this last batch.
    """

    turn_id: str
    events: bytes
    last: int
    is_first: bool
    ttl_s: int | None
    is_attempt: bool = False
    is_repeatable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSlice:
    """Events after a number.

    `exists` is true if the turn is in Redis, `is_over` if these are its last events.
    """

    events: bytes
    exists: bool
    is_over: bool


class EventLog:
    """One Redis stream for each turn.

    An entry contains several events; the number of its last event is its entry id.
    """

    def __init__(self, batcher: CommandBatcher) -> None:
        self._batcher = batcher

    async def append(self, batches: Sequence[EventBatch]) -> list[bool]:
        """Store events of several turns; return for each whether its earlier events exist."""
        commands: list[Command] = []
        indexes: list[int | None] = []
        for batch in batches:
            if batch.is_attempt and batch.is_first:
                commands += keys.restart_turn(batch.turn_id)
            indexes.append(None if batch.is_first or not batch.events else len(commands))
            key = keys.turn_key(batch.turn_id)
            if batch.events:
                # If the key was lost, these events alone would be a stream without its start.
                only_existing = () if batch.is_first else ("NOMKSTREAM",)
                entry_id = f"{batch.last}-0"
                commands.append(("XADD", key, *only_existing, entry_id, EVENTS_FIELD, batch.events))
            if batch.ttl_s is not None and batch.is_repeatable:
                commands += keys.end_repeatable_turn(batch.turn_id, batch.ttl_s)
            elif batch.ttl_s is not None:
                commands += keys.touch_turn(batch.turn_id, batch.ttl_s)
        replies = await self._batcher.transact(commands)
        return [index is None or replies[index] is not None for index in indexes]

    async def read(self, turn_id: str, after: int) -> EventSlice:
        """Return the events after a number, at most those of READ_ENTRIES entries."""
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
        position = sse.event_number(sse.last_event(events)) if events else after
        is_over = position >= sse.event_number(last) and is_final(last)
        return EventSlice(events=events, exists=True, is_over=is_over)

    async def request_stop(self, turn_id: str) -> None:
        """Ask the worker that runs a turn to stop it."""
        await self._batcher.transact(
            [
                (
                    "XADD",
                    keys.STOP_REQUESTS,
                    "MAXLEN",
                    "~",
                    MAX_STOP_REQUESTS,
                    "*",
                    "turn",
                    turn_id,
                ),
                ("EXPIRE", keys.STOP_REQUESTS, keys.STOP_REQUESTS_TTL_S),
            ]
        )

    async def last_stop_request(self) -> str:
        """Return the entry id of the newest stop request."""
        (found,) = await self._batcher.transact(
            [("XREVRANGE", keys.STOP_REQUESTS, "+", "-", "COUNT", 1)]
        )
        return found[0][0].decode() if found else "0-0"

    async def stop_requests(self, after: str) -> tuple[list[str], str]:
        """Return the ids of the turns to stop, and the entry id to continue after."""
        (found,) = await self._batcher.transact(
            [("XRANGE", keys.STOP_REQUESTS, f"({after}", "+", "COUNT", MAX_STOP_REQUESTS)]
        )
        last = found[-1][0].decode() if found else after
        return [fields[1].decode() for _, fields in found], last


def is_final(event: bytes) -> bool:
    """Return whether an event is the last one of its turn."""
    return bool(event) and sse.parse_event(event)[0] in FINAL_EVENTS
