"""The index of live sessions: who is there, by when each expires."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from groqchat.errors import SessionNotFound
from groqchat.storage import keys
from groqchat.storage.messages import Row
from groqchat.storage.walk import index_beyond_row, items_beyond

# Expired entries removed at once: enough to keep up, too few to hold up the server.
PRUNE_BATCH = 1000
# Entries without a session are rare. A page stops looking for others after this many reads.
MAX_READS = 10
CURSOR_MARK = "@"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage:
    """Session ids in the order asked for; the count is of all live sessions.

    `cursor` goes on behind the page, in its direction, however sessions move meanwhile.
    """

    sessions: list[str]
    total_sessions: int
    cursor: str | None


class SessionIndex:
    """The sorted set of live sessions, the score being when each expires."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def page(
        self, *, limit: int, after: str | None, before: str | None, oldest_first: bool
    ) -> SessionPage:
        """Return a page of sessions that exist, dropping entries of those that do not."""
        end = await self._row_of(before, param="before") if after and before else None
        # Reading backwards from a session is reading the other order, turned round.
        backwards = before is not None and end is None
        param = "before" if backwards else "after"
        cursor = await self._row_of(before if backwards else after, param=param)
        ascending = oldest_first != backwards
        found: list[Row] = []
        exhausted = False
        for _ in range(MAX_READS):
            want = limit + 1 - len(found)
            rows, total = await self._read(cursor, ascending=ascending, want=want)
            alive = await self._drop_missing(rows)
            found += alive
            total -= len(rows) - len(alive)
            exhausted = len(rows) < want
            if exhausted or len(found) > limit:
                break
            cursor = rows[-1]
        if end is not None:
            inside = _up_to(end, found, ascending=ascending)
            exhausted = exhausted or len(inside) < len(found)
            found = inside
        listed = found[:limit]
        # The last one read, there or not: what is not listed lies beyond it.
        last = listed[-1] if len(found) > limit else cursor
        names = [name.decode(errors="replace") for name, _ in listed]
        return SessionPage(
            sessions=names[::-1] if backwards else names,
            total_sessions=total,
            cursor=None if exhausted and len(found) <= limit else _cursor_text(last),
        )

    async def prune(self) -> int:
        """Remove up to PRUNE_BATCH entries of expired sessions and return their number.

        By score, not by name: a session that comes back meanwhile has another score.
        """
        now = _before(time.time())
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
        """List sessions by what their keys' TTLs say and return how many exist."""
        pttls = await self._pipelined(
            lambda pipe: [pipe.pttl(keys.session_key(session_id)) for session_id in session_ids]
        )
        now = time.time()
        scores = {
            session_id: keys.index_score(pttl_ms, now)
            for session_id, pttl_ms in zip(session_ids, pttls, strict=True)
            if pttl_ms != _NO_KEY
        }
        if scores:
            # GT: a session that became active meanwhile is not put back.
            await self._redis.zadd(keys.SESSIONS_INDEX, scores, gt=True)
        return len(scores)

    async def _row_of(self, cursor: str | None, *, param: str) -> Row | None:
        if cursor is None:
            return None
        session_id, mark, score = cursor.partition(CURSOR_MARK)
        found = _score(score) if mark else await self._redis.zscore(keys.SESSIONS_INDEX, session_id)
        if found is None:
            raise SessionNotFound(param=param)
        return session_id.encode(), found

    async def _read(
        self, cursor: Row | None, *, ascending: bool, want: int
    ) -> tuple[Sequence[Row], int]:
        """Read up to `want` live entries beyond one, and the number of all live ones."""
        now = time.time()
        start, end = (now, "+inf") if ascending else ("+inf", now)
        if cursor is not None:
            start = max(cursor[1], now) if ascending else cursor[1]
        total = 0

        async def fetch(count: int) -> list[Row]:
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
            total, rows = await self._pipelined(commands)
            return list(rows)

        if cursor is None:
            return await fetch(want), total
        begin = partial(index_beyond_row, cursor, forward=ascending)
        return await items_beyond(fetch, begin, want=want), total

    async def _drop_missing(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows whose sessions exist, and remove the others from the index."""
        if not rows:
            return []
        exist = await self._pipelined(
            lambda pipe: [pipe.exists(_key(row)) for row in rows], transaction=False
        )
        missing = [row[0] for row, there in zip(rows, exist, strict=True) if not there]
        if missing:
            await self._redis.zrem(keys.SESSIONS_INDEX, *missing)
            # One may have come back in between; then it has a key again.
            await self.add_existing([name.decode(errors="replace") for name in missing])
        return [row for row, there in zip(rows, exist, strict=True) if there]

    async def _pipelined(
        self, commands: Callable[[Pipeline], object], *, transaction: bool = True
    ) -> list[Any]:
        async with self._redis.pipeline(transaction=transaction) as pipe:
            commands(pipe)
            return await pipe.execute()


# What PTTL answers for a key that does not exist.
_NO_KEY = -2


def _up_to(end: Row, rows: Sequence[Row], *, ascending: bool) -> list[Row]:
    """Return the rows that stand before another, in the order they are read in."""
    place = (end[1], end[0])
    return [row for row in rows if ((row[1], row[0]) < place) == ascending and row[0] != end[0]]


def _key(row: Row) -> bytes:
    return keys.SESSION_PREFIX.encode() + row[0]


def _cursor_text(row: Row | None) -> str | None:
    return f"{row[0].decode(errors='replace')}{CURSOR_MARK}{row[1]!r}" if row else None


def _score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return score if score == score else None  # noqa: PLR0124 - not a number is unlike itself


def _before(score: float) -> str:
    return f"({score!r}"
