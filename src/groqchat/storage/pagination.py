"""Keyset pagination of sorted sets: pages that start after a member, without OFFSET."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from groqchat.errors import InvalidField
from groqchat.storage.message_ids import micros_of
from groqchat.storage.messages import ScoredMember, member_id, member_micros

Item = TypeVar("Item")

# How many further members may have the cursor's score before the read is repeated with a higher
# count. With timestamps in microseconds, equal scores are rare.
TIES = 8
# An import may write thousands of members with one score. After a read with at least this number
# of ties, no further read follows.
MAX_TIES = 65_536
TIES_FACTOR = 8
LIMIT_RULE = "must be a whole number of at least 1"


async def read_after(
    fetch: Callable[[int], Awaitable[Sequence[Item]]],
    start: Callable[[Sequence[Item], bool], int],
    *,
    want: int,
) -> Sequence[Item]:
    """Return up to `want` items that follow a cursor in reading order.

    `fetch(count)` reads at most `count` items, starting at the cursor's score. `start(items,
    is_end)` returns the index of the first item that follows the cursor, or len(items) if there
    is none; `is_end` is true if no further items will be read.
    """
    ties = TIES
    while True:
        items = await fetch(want + ties)
        is_end = len(items) < want + ties or ties >= MAX_TIES
        following = items[start(items, is_end) :]
        if len(following) >= want or is_end:
            return following[:want]
        ties *= TIES_FACTOR


def index_after_member(
    cursor: ScoredMember,
    members: Sequence[ScoredMember],
    _is_end: bool,  # noqa: FBT001 - read_after passes it by position
    *,
    forward: bool,
) -> int:
    """Return the index of the first member that follows `cursor` in reading order.

    Redis orders a sorted set by score, then by the bytes of the member.
    """
    member, score = cursor
    if forward:
        return sum((found_score, found) <= (score, member) for found, found_score in members)
    return sum((found_score, found) >= (score, member) for found, found_score in members)


def index_after_message(
    message_id: str,
    members: Sequence[ScoredMember],
    is_end: bool,  # noqa: FBT001 - read_after passes it by position
    *,
    forward: bool,
) -> int:
    """Return the index of the first member that follows a message in reading order.

    Members with equal scores are ordered by their bytes. That is the order of this service's ids,
    but not of the ids derived for members of other programs. So the message itself is searched
    for first.
    """
    ids = [member_id(member) for member in members]
    if message_id in ids:
        return ids.index(message_id) + 1
    micros = micros_of(message_id)
    times = map(member_micros, members)
    same_time = sum(time <= micros if forward else time >= micros for time in times)
    if same_time == len(members) and not is_end:
        # The message may be among the members that are not read yet.
        return len(members)
    # The message was deleted: its former position follows from the ids.
    return sum(found < message_id if forward else found > message_id for found in ids[:same_time])


def count_before(members: Sequence[ScoredMember], message_id: str) -> int:
    """Return how many of the members, in time order, come before a message of their session."""
    ids = [member_id(member) for member in members]
    if message_id in ids:
        return ids.index(message_id)
    # The message comes later, or was deleted.
    micros = micros_of(message_id)
    return sum(member_micros(member) <= micros for member in members)


def invalid_argument(param: str, rule: str) -> InvalidField:
    """Return the error for an argument of a page that breaks a rule."""
    return InvalidField(message=f"{param}: {rule}", param=param)
