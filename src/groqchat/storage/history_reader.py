"""Reading a session's sorted set in parts, onwards from a message or from an end."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from groqchat.storage.batching import Command
from groqchat.storage.messages import (
    MICROS_PER_S,
    Message,
    Row,
    decode_member,
    index_beyond,
    micros_of,
    rows_of,
)
from groqchat.storage.walk import index_beyond_row, items_beyond

# A read takes in about so much at a time, so that a set of long messages is read in parts.
FIRST_CHUNK = 20
MAX_CHUNK = 500
CHUNK_BYTES = 1024 * 1024
# A page ends early where its messages reach this size, so that no read fills the memory:
# a thousand messages of the greatest length would be 100 MB and more.
MAX_PAGE_BYTES = 8 * 1024 * 1024
# Members looked at for one page, corrupt ones included.
MAX_ROWS = 10_000

Entry: TypeAlias = tuple[Row, Message | None]
Transact: TypeAlias = Callable[[Sequence[Command]], Awaitable[list[Any]]]


class HistoryReader:
    """One pass over a session; after a read, `count` and `last` are of the whole session."""

    def __init__(self, transact: Transact, key: str, *, forward: bool) -> None:
        self._transact = transact
        self._key = key
        self._forward = forward
        self.count = 0
        self.last: Sequence[Row] = ()
        self.has_more = False
        # What lies right beyond what was read, where that is known.
        self.next: Sequence[Row] = ()

    async def read(
        self, cursor: Row | str | None, *, limit: int, max_bytes: int | None = None
    ) -> list[Entry]:
        """Return the entries up to the `limit`-th message beyond a place, in reading order.

        The place is a message id or a row. Reading ends with the part that reaches `max_bytes`,
        or a page's greatest size.
        Entries without a message are corrupt. `has_more` tells whether anything lies beyond.
        """
        entries: list[Entry] = []
        place: Row | str | None = cursor
        messages = size = 0
        chunk = FIRST_CHUNK
        while True:
            want = min(chunk, limit + 1 - messages)
            rows = await self._rows_beyond(place, want=want)
            for row in rows:
                message = decode_member(*row)
                messages += message is not None
                size += len(row[0])
                if messages > limit:
                    self.has_more = True
                    self.next = (row,)
                    return entries
                entries.append((row, message))
            if len(rows) < want:
                return entries
            if size >= (max_bytes or MAX_PAGE_BYTES) or len(entries) >= MAX_ROWS:
                self.has_more = True
                return entries
            place = rows[-1]
            chunk = max(1, min(MAX_CHUNK, CHUNK_BYTES * len(entries) // max(size, 1)))

    async def _rows_beyond(self, place: Row | str | None, *, want: int) -> Sequence[Row]:
        if place is None:
            return await self._fetch(None, want)
        if isinstance(place, str):
            begin = partial(index_beyond, place, forward=self._forward)
        else:
            begin = partial(index_beyond_row, place, forward=self._forward)
        return await items_beyond(partial(self._fetch, place), begin, want=want)

    async def _fetch(self, place: Row | str | None, count: int) -> list[Row]:
        """Read members from a place on, itself included, and the overview of the session."""
        commands: list[Command] = [
            ("ZCARD", self._key),
            ("ZRANGE", self._key, -1, -1, "WITHSCORES"),
            self._range(place, count),
        ]
        self.count, last, rows = await self._transact(commands)
        self.last = rows_of(last)
        return rows_of(rows)

    def _range(self, place: Row | str | None, count: int) -> Command:
        reverse = () if self._forward else ("REV",)
        if place is None:
            return ("ZRANGE", self._key, 0, count - 1, *reverse, "WITHSCORES")
        start = place[1] if isinstance(place, tuple) else self._score_before(place)
        end = "+inf" if self._forward else "-inf"
        limits = ("LIMIT", 0, count)
        return ("ZRANGE", self._key, repr(start), end, "BYSCORE", *reverse, *limits, "WITHSCORES")

    def _score_before(self, message_id: str) -> float:
        """Return a score a microsecond short of a message's: others write finer ones than we."""
        micros = micros_of(message_id)
        return (micros - 1 if self._forward else micros + 1) / MICROS_PER_S
