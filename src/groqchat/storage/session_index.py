"""The session index: a sorted set of the live sessions, ordered by expiry."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from groqchat.errors import SessionNotFound
from groqchat.fields import PATTERN_RULES, SESSION_CURSOR_PATTERN
from groqchat.storage import keys
from groqchat.storage.messages import ScoredMember
from groqchat.storage.pagination import LIMIT_RULE, index_after_member, invalid_argument, read_after

# Expired entries that one command removes: few enough not to block the server.
PRUNE_BATCH = 1000
# Entries without a session are rare. A page ends early after this number of reads.
MAX_READS = 10
CURSOR_MARK = "@"
# The reply to PTTL for a key that does not exist.
NO_KEY_PTTL = -2


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage:
    """A page of session ids in the requested order; `total_sessions` counts all live sessions.

    `cursor` is the position of the next page, None at the end. It stays valid when sessions move.
    """

    sessions: list[str]
    total_sessions: int
    cursor: str | None


class SessionIndex:
    """The sorted set of live sessions; the score of a session is its expiry in Unix seconds."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def page(
        self, *, limit: int, after: str | None, before: str | None, oldest_first: bool
    ) -> SessionPage:
        """Return a page of sessions; remove the index entries of sessions that do not exist."""
        _check_page(limit=limit, after=after, before=before)
        end = await self._locate(before, param="before") if after and before else None
        # A page before a session is a page after it in the opposite order, reversed.
        backwards = before is not None and end is None
        param = "before" if backwards else "after"
        cursor = await self._locate(before if backwards else after, param=param)
        ascending = oldest_first != backwards
        found: list[ScoredMember] = []
        exhausted = False
        for _ in range(MAX_READS):
            want = limit + 1 - len(found)
            members, total = await self._read(cursor, ascending=ascending, want=want)
            alive = await self._drop_missing(members)
            found += alive
            total -= len(members) - len(alive)
            exhausted = len(members) < want
            if exhausted or len(found) > limit:
                break
            cursor = members[-1]
        if end is not None:
            inside = _members_exclusive(end, found, ascending=ascending)
            exhausted = exhausted or len(inside) < len(found)
            found = inside
        listed = found[:limit]
        # The next page starts after the last listed session; on a short page, after the last member
        # that was read, even if its session does not exist.
        last = listed[-1] if len(found) > limit else cursor
        names = [name.decode(errors="replace") for name, _ in listed]
        return SessionPage(
            sessions=names[::-1] if backwards else names,
            total_sessions=total,
            cursor=None if exhausted and len(found) <= limit else _cursor_text(last),
        )

    async def prune(self) -> int:
        """Remove about PRUNE_BATCH entries of expired sessions and return their number.

        Removes by score, not by name: a session that becomes active meanwhile has another score.
        """
        now = _exclusive(time.time())
        last = await self._redis.zrange(
            keys.SESSIONS_INDEX,
            "-inf",
            now,
            byscore=True,
            offset=PRUNE_BATCH - 1,
            num=1,
            withscores=True,
        )
        up_to = last[0][1] if last else now
        return int(await self._redis.zremrangebyscore(keys.SESSIONS_INDEX, "-inf", up_to))

    async def add_existing(self, session_ids: Sequence[str]) -> int:
        """Add sessions to the index by the TTLs of their keys and return how many exist."""
        pttls = await self._pipelined(
            lambda pipe: [pipe.pttl(keys.session_key(session_id)) for session_id in session_ids]
        )
        now = time.time()
        scores = {
            session_id: keys.index_score(pttl_ms, now)
            for session_id, pttl_ms in zip(session_ids, pttls, strict=True)
            if pttl_ms != NO_KEY_PTTL
        }
        if scores:
            # GT: a session that became active meanwhile keeps its later expiry.
            await self._redis.zadd(keys.SESSIONS_INDEX, scores, gt=True)
        return len(scores)

    async def _locate(self, cursor: str | None, *, param: str) -> ScoredMember | None:
        if cursor is None:
            return None
        session_id, mark, score = cursor.partition(CURSOR_MARK)
        found = _score(score) if mark else await self._redis.zscore(keys.SESSIONS_INDEX, session_id)
        if found is None:
            raise SessionNotFound(param=param)
        return session_id.encode(), found

    async def _read(
        self, cursor: ScoredMember | None, *, ascending: bool, want: int
    ) -> tuple[Sequence[ScoredMember], int]:
        """Return up to `want` live members after a cursor, and the number of all live sessions."""
        now = time.time()
        start, end = (now, "+inf") if ascending else ("+inf", now)
        if cursor is not None:
            start = max(cursor[1], now) if ascending else cursor[1]
        total = 0

        async def fetch(count: int) -> list[ScoredMember]:
            def commands(pipe: Pipeline) -> None:
                pipe.zcount(keys.SESSIONS_INDEX, now, "+inf")
                pipe.zrange(
                    keys.SESSIONS_INDEX,
                    start,
                    end,
                    desc=not ascending,
                    byscore=True,
                    offset=0,
                    num=count,
                    withscores=True,
                )

            nonlocal total
            total, members = await self._pipelined(commands)
            return list(members)

        if cursor is None:
            return await fetch(want), total
        start_index = partial(index_after_member, cursor, forward=ascending)
        return await read_after(fetch, start_index, want=want), total

    async def _drop_missing(self, members: Sequence[ScoredMember]) -> list[ScoredMember]:
        """Return the members whose sessions exist, and remove the others from the index."""
        if not members:
            return []
        exist = await self._pipelined(
            lambda pipe: [pipe.exists(_key(member)) for member in members], transaction=False
        )
        missing = [member[0] for member, there in zip(members, exist, strict=True) if not there]
        if missing:
            await self._redis.zrem(keys.SESSIONS_INDEX, *missing)
            # A session that was written meanwhile exists again.
            await self.add_existing([name.decode(errors="replace") for name in missing])
        return [member for member, there in zip(members, exist, strict=True) if there]

    async def _pipelined(
        self, commands: Callable[[Pipeline], object], *, transaction: bool = True
    ) -> list[Any]:
        async with self._redis.pipeline(transaction=transaction) as pipe:
            commands(pipe)
            return await pipe.execute()


def _check_page(*, limit: int, **cursors: object) -> None:
    """Raise InvalidField for a limit below one, or for a cursor that is not a text.

    Another program may have stored a session whose id the API rejects. Its page has a cursor too.
    """
    if type(limit) is not int or limit < 1:
        raise invalid_argument("limit", LIMIT_RULE)
    for param, cursor in cursors.items():
        if cursor is not None and not _is_text(cursor):
            raise invalid_argument(param, PATTERN_RULES[SESSION_CURSOR_PATTERN])


def _is_text(cursor: object) -> bool:
    """Return whether a cursor is a text that Redis can store."""
    if not isinstance(cursor, str):
        return False
    try:
        cursor.encode()
    except UnicodeEncodeError:
        return False
    return True


def _members_exclusive(
    end: ScoredMember, members: Sequence[ScoredMember], *, ascending: bool
) -> list[ScoredMember]:
    """Return the members before `end`, in reading order."""
    position = (end[1], end[0])
    return [
        member
        for member in members
        if ((member[1], member[0]) < position) == ascending and member[0] != end[0]
    ]


def _key(member: ScoredMember) -> bytes:
    return keys.SESSION_PREFIX.encode() + member[0]


def _cursor_text(member: ScoredMember | None) -> str | None:
    return f"{member[0].decode(errors='replace')}{CURSOR_MARK}{member[1]!r}" if member else None


def _score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return score if score == score else None  # noqa: PLR0124 - NaN differs from itself


def _exclusive(score: float) -> str:
    return f"({score!r}"
