"""Reading a sorted set onwards from one of its members, without OFFSET."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")

# Members that may share the score of the one a read goes on from, before it is read again
# with more room: clocks of microseconds hardly ever meet.
TIES = 8
# An import may give thousands of members one score. Past this many, none is looked for.
MAX_TIES = 65_536


def index_beyond_row(
    place: tuple[bytes, float],
    rows: Sequence[tuple[bytes, float]],
    _complete: bool,  # noqa: FBT001 - given by place
    *,
    forward: bool,
) -> int:
    """Return where, in rows read onwards from a row's score, what lies beyond it begins.

    Redis orders a sorted set by score, then by the bytes of the member.
    """
    member, score = place
    if forward:
        return sum((at, found) <= (score, member) for found, at in rows)
    return sum((at, found) >= (score, member) for found, at in rows)


async def items_beyond(
    fetch: Callable[[int], Awaitable[Sequence[Item]]],
    begin: Callable[[Sequence[Item], bool], int],
    *,
    want: int,
) -> Sequence[Item]:
    """Return up to `want` items beyond a member.

    `fetch(count)` reads at most `count` items from the member's score on. `begin(items,
    complete)` tells where in them those beyond the member begin, or len(items) where they do
    not; `complete` says that there is no more to read.
    """
    room = TIES
    while True:
        items = await fetch(want + room)
        complete = len(items) < want + room or room >= MAX_TIES
        beyond = items[begin(items, complete) :]
        if len(beyond) >= want or complete:
            return beyond[:want]
        room *= 8
