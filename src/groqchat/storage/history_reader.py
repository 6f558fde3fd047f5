"""Reading a session's sorted set in chunks, from a cursor or from one end."""

import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from groqchat.errors import StorageError
from groqchat.fields import MESSAGE_ID_PATTERN, PATTERN_RULES
from groqchat.storage import keys
from groqchat.storage.errors import redis_errors
from groqchat.storage.keys import Command
from groqchat.storage.message_ids import MICROS_PER_S, iso_time, micros_of, score_text
from groqchat.storage.messages import (
    FIRST_CONTEXT,
    Message,
    PromptMessage,
    ScoredMember,
    decode_context,
    decode_member,
    first_read,
    member_id,
    member_micros,
    scored_members,
    size_of,
    warn_about_corrupt_members,
)
from groqchat.storage.page_reads import PageRead
from groqchat.storage.pagination import (
    LIMIT_RULE,
    count_before,
    index_after_member,
    index_after_message,
    invalid_argument,
    read_after,
)

# A chunk should be about CHUNK_BYTES: a set of long messages is read in many small chunks.
FIRST_CHUNK = 20
MAX_CHUNK = 500
CHUNK_BYTES = 1024 * 1024
# A page ends early at this size: a thousand messages of maximum length are more than 100 MB.
MAX_PAGE_BYTES = 8 * 1024 * 1024
# Members read for one page, corrupt members included.
MAX_MEMBERS = 10_000
# The first read for the answer of an earlier attempt. Usually, few other turns have stored messages
# between a turn and its answer.
LATER_MESSAGES = 100

Entry: TypeAlias = tuple[ScoredMember, Message | None]
Transact: TypeAlias = Callable[[Sequence[Command]], Awaitable[list[Any]]]
# A message id, or a member with its score.
Cursor: TypeAlias = ScoredMember | str

MESSAGE_ID = re.compile(MESSAGE_ID_PATTERN)

log = logging.getLogger(__name__)


def check_page(*, limit: int, **cursors: object) -> None:
    """Raise InvalidField for a limit below one, or for a cursor that is not a message id."""
    if type(limit) is not int or limit < 1:
        raise invalid_argument("limit", LIMIT_RULE)
    for param, cursor in cursors.items():
        if cursor is not None and not (isinstance(cursor, str) and MESSAGE_ID.fullmatch(cursor)):
            raise invalid_argument(param, PATTERN_RULES[MESSAGE_ID_PATTERN])


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    """Messages in time order; count and last time describe the whole session."""

    messages: list[Message]
    message_count: int
    last_message_time: str | None
    has_more: bool
    first_id: str | None
    last_id: str | None


class HistoryReader:
    """One read of a session; afterwards `count` and `last` describe the whole session.

    After a failed read, `entries` contains what was read before the failure.
    `has_more` is true if further members follow in reading order, and `next` contains the
    first of them, unless the read has ended at `enough_bytes`.
    """

    def __init__(
        self, transact: Transact, key: str, *, forward: bool, counted: PageRead | None = None
    ) -> None:
        self._transact = transact
        self._key = key
        self._forward = forward
        self._counted = counted
        self.entries: list[Entry] = []
        self.count = 0
        self.last: Sequence[ScoredMember] = ()
        self.has_more = False
        self.next: Sequence[ScoredMember] = ()

    async def read(
        self, cursor: Cursor | None, *, limit: int, enough_bytes: int | None = None
    ) -> list[Entry]:
        """Return the members after a cursor up to the `limit`-th message, in reading order.

        The read ends before the member that exceeds MAX_PAGE_BYTES, but has one member at least.
        With `enough_bytes`, it ends after the chunk that reaches this size instead. The message of
        a corrupt member is None.
        """
        entries = self.entries
        max_bytes = math.inf if enough_bytes else MAX_PAGE_BYTES
        position = cursor
        messages = size = 0
        chunk = FIRST_CHUNK
        while True:
            want = min(chunk, limit + 1 - messages)
            members = await self._members_after(position, want=want)
            for member in members:
                message = decode_member(*member)
                messages += message is not None
                size += len(member[0])
                is_full = len(entries) >= MAX_MEMBERS or (size > max_bytes and entries)
                if messages > limit or is_full:
                    self.has_more = True
                    self.next = (member,)
                    return entries
                entries.append((member, message))
            if len(members) < want or (enough_bytes and size >= enough_bytes):
                return entries
            if self._counted is not None:
                await self._counted.grow(size)
            position = members[-1]
            chunk = max(1, min(MAX_CHUNK, CHUNK_BYTES * len(entries) // max(size, 1)))

    async def read_before(
        self, member: bytes, limit: int, max_bytes: int, *, end: float
    ) -> list[PromptMessage]:
        """Return up to `limit` messages before a member, about `max_bytes`, oldest first.

        If Redis fails, or at the time `end`, returns those that were read before: the caller has
        stored its message.
        """
        if max_bytes <= 0:
            return []
        try:
            async with redis_errors(end - time.monotonic()):
                (score,) = await self._transact([("ZSCORE", self._key, member)])
                if score is not None:
                    await self.read((member, float(score)), limit=limit, enough_bytes=max_bytes)
        except StorageError as error:
            log.warning("answering without some of the older messages: %s", error)
        return [
            {"role": message.role, "content": message.content}
            for _, message in reversed(self.entries)
            if message is not None
        ]

    async def _members_after(self, cursor: Cursor | None, *, want: int) -> Sequence[ScoredMember]:
        if cursor is None:
            return await self._fetch(None, want)
        if isinstance(cursor, str):
            start = partial(index_after_message, cursor, forward=self._forward)
        else:
            start = partial(index_after_member, cursor, forward=self._forward)
        return await read_after(partial(self._fetch, cursor), start, want=want)

    async def _fetch(self, cursor: Cursor | None, count: int) -> list[ScoredMember]:
        """Read members from the cursor's score on, and the size and last member of the session."""
        commands: list[Command] = [
            ("ZCARD", self._key),
            ("ZRANGE", self._key, -1, -1, "WITHSCORES"),
            self._range(cursor, count),
        ]
        self.count, last, members = await self._transact(commands)
        self.last = scored_members(last)
        return scored_members(members)

    def _range(self, cursor: Cursor | None, count: int) -> Command:
        reverse = () if self._forward else ("REV",)
        if cursor is None:
            return ("ZRANGE", self._key, 0, count - 1, *reverse, "WITHSCORES")
        start = self._start_score(cursor) if isinstance(cursor, str) else cursor[1]
        end = "+inf" if self._forward else "-inf"
        limits = ("LIMIT", 0, count)
        return ("ZRANGE", self._key, repr(start), end, "BYSCORE", *reverse, *limits, "WITHSCORES")

    def _start_score(self, message_id: str) -> float:
        """Return a score one microsecond before the message in reading order.

        Other programs write scores with fractions of a microsecond.
        """
        micros = micros_of(message_id)
        return (micros - 1 if self._forward else micros + 1) / MICROS_PER_S


class FirstRead(NamedTuple):
    """The latest members of a session, in time order.

    `again`: they may follow this message, which was saved twice.
    """

    session_id: str
    members: list[bytes]
    again: Message | None


async def read_context(
    transact: Transact, first: FirstRead, limit: int, *, max_bytes: int, end: float
) -> list[PromptMessage]:
    """Return up to `limit` messages, about `max_bytes`; read those before FIRST_CONTEXT."""
    key, members = keys.session_key(first.session_id), first.members
    if first.again is not None:
        (found,) = await transact(first_read(first.session_id, limit, before=first.again))
        members = found[::-1]
    latest = decode_context(members, session_id=first.session_id)
    if not len(members) == FIRST_CONTEXT < limit:
        return latest
    reader = HistoryReader(transact, key, forward=False)
    rest = limit - FIRST_CONTEXT, max_bytes - size_of(latest)
    return [*await reader.read_before(members[0], *rest, end=end), *latest]


class StoredTurn(NamedTuple):
    """The messages of a turn, and its answers, that earlier attempts have stored."""

    messages: list[Message]
    answers: list[Message]


async def read_turn(ids: Sequence[str], transact: Transact, session_id: str) -> StoredTurn:
    """Return the stored messages with these ids, and the answers of the turn of the last id.

    The ids are close together, in time order. An answer names its turn, whose id is that of the
    user message that precedes it. Other turns may have stored MAX_MEMBERS messages since.
    """
    key = keys.session_key(session_id)
    first, last = score_text(ids[0]), score_text(ids[-1])
    limits = ("LIMIT", 0, len(ids) + LATER_MESSAGES)
    scores = ("BYSCORE", *limits, "WITHSCORES")
    close, members = await transact(
        [
            ("ZRANGE", key, first, last, *scores),
            ("ZRANGE", key, f"({last}", "+inf", *scores),
        ]
    )
    later = scored_members(members)
    answers = _answers(later, ids[-1])
    read = len(later)
    while len(later) >= LATER_MESSAGES and read < MAX_MEMBERS and not answers:
        after = f"({later[-1][1]!r}"
        (members,) = await transact([("ZRANGE", key, after, "+inf", *scores)])
        later = scored_members(members)
        answers = _answers(later, ids[-1])
        read += len(later)
    found = [message for each in scored_members(close) if (message := decode_member(*each))]
    own = frozenset(ids)
    messages = [each for each in found if each.id in own]
    return StoredTurn(messages=messages, answers=answers)


def _answers(members: Sequence[ScoredMember], turn_id: str) -> list[Message]:
    """Return the answers of a turn among members."""
    messages = [message for each in members if (message := decode_member(*each))]
    return [message for message in messages if message.turn_id == turn_id]


async def read_page(  # noqa: PLR0913 - the cursors are independent options
    transact: Transact,
    session_id: str,
    counted: PageRead,
    *,
    limit: int,
    after: str | None,
    before: str | None,
    oldest_first: bool,
) -> HistoryPage:
    """Read a page as `HistoryStore.get_history_page`."""
    forward = after is not None or (oldest_first and before is None)
    key = keys.session_key(session_id)
    reader = HistoryReader(transact, key, forward=forward, counted=counted)
    entries = await reader.read(after or before, limit=limit)
    if not forward:
        entries.reverse()
    elif before is not None:
        members = [member for member, _ in entries]
        end = count_before([*members, *reader.next], before)
        reader.has_more = reader.has_more and end > len(entries)
        entries = entries[:end]
    messages = [message for _, message in entries if message is not None]
    if len(messages) < len(entries):
        warn_about_corrupt_members(len(entries) - len(messages), session_id)
    ids = [message.id for message in messages] or [member_id(member) for member, _ in entries]
    return HistoryPage(
        messages=messages,
        message_count=reader.count,
        last_message_time=iso_time(member_micros(reader.last[0])) if reader.last else None,
        has_more=reader.has_more,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
    )
