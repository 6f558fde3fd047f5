"""The events of a turn, in little memory: old ones are stored as text and encoded when needed."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import orjson

from groqchat.sse import encode_event

# Encoded events of the latest texts: a follower that keeps up reads only these. An encoded event
# needs about twenty times the memory of its text, which is a word.
BLOCK_EVENTS = 128


@dataclass(frozen=True, slots=True)
class _Block:
    """The texts of BLOCK_EVENTS consecutive `delta` events; `ends` are their ends in `text`."""

    text: str
    ends: "array[int]"

    def part(self, index: int) -> str:
        begin = self.ends[index - 1] if index else 0
        return self.text[begin : self.ends[index]]


class TurnEvents(Sequence[bytes]):
    """Encoded events, which can be added but not changed.

    Only the latest events are in memory as they are. From the texts of the earlier ones, the same
    events are encoded again for a follower that lags behind. `first_number` is the number of the
    first event.
    """

    def __init__(self, first_number: int = 1) -> None:
        self.first_number = first_number
        # The event before the first text; in `_latest` until there is a block.
        self._first = b""
        self._blocks: list[_Block] = []
        self._latest: list[bytes] = []
        # How many events precede the latest ones.
        self._earlier = 0
        # The texts that are not in a block, those of the events in `_latest`.
        self._texts: list[str] = []
        # Whether an event other than the first has no text: then no further block is created.
        self._has_other = False

    def __len__(self) -> int:
        return self._earlier + len(self._latest)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if position >= self._earlier:
            return self._latest[position - self._earlier]
        if position == 0:
            return self._first
        block, part = divmod(position - 1, BLOCK_EVENTS)
        return _encode_text(self._blocks[block].part(part), self.first_number + position)

    @property
    def last(self) -> bytes:
        """The event that was added last."""
        return self._latest[-1]

    @property
    def next_number(self) -> int:
        """The number of the event that is added next."""
        return self.first_number + self._earlier + len(self._latest)

    @property
    def text(self) -> str:
        """All texts, concatenated."""
        return "".join([*(block.text for block in self._blocks), *self._texts])

    def add(self, event: bytes) -> None:
        """Add an event without a text."""
        self._has_other = len(self) > 0
        self._latest.append(event)

    def add_text(self, text: str) -> None:
        """Add a `delta` event."""
        number = self.next_number
        if number == self.first_number:
            self._has_other = True
        self._latest.append(_encode_text(text, number))
        self._texts.append(text)
        if len(self._texts) >= 2 * BLOCK_EVENTS and not self._has_other:
            self._compact()

    def discard(self, count: int) -> None:
        """Remove the first events from memory, but not the last one; nobody reads them again."""
        removed = min(count - self._earlier, len(self._latest) - 1)
        if removed > 0:
            del self._latest[:removed]
            self._earlier += removed

    def joined(self, after: int, max_bytes: int) -> tuple[bytes, int]:
        """Join the events after the first `after`, up to `max_bytes`, but one event at least.

        Returns them and how many events precede the next one.
        """
        latest = after - self._earlier
        if latest == len(self._latest) - 1:
            return self._latest[latest], after + 1
        begin, end = 0, self._earlier
        event_at: Callable[[int], bytes] = self.__getitem__
        if latest >= 0:
            begin, end = self._earlier, len(self)
            event_at = self._latest.__getitem__
        found = [event_at(after - begin)]
        size = len(found[0])
        # By index, because iterating from the start would become slower with each event.
        for index in range(after + 1 - begin, end - begin):
            event = event_at(index)
            size += len(event)
            if size > max_bytes:
                break
            found.append(event)
        return (found[0] if len(found) == 1 else b"".join(found)), after + len(found)

    def _compact(self) -> None:
        """Store the oldest of the latest events as text only."""
        if not self._blocks:
            self._first = self._latest.pop(0)
            self._earlier = 1
        ends = array("I")
        end = 0
        for text in self._texts[:BLOCK_EVENTS]:
            end += len(text)
            ends.append(end)
        self._blocks.append(_Block("".join(self._texts[:BLOCK_EVENTS]), ends))
        del self._texts[:BLOCK_EVENTS]
        del self._latest[:BLOCK_EVENTS]
        self._earlier += BLOCK_EVENTS


def _encode_text(text: str, number: int) -> bytes:
    return encode_event(orjson.dumps({"text": text}), name="delta", number=number)
