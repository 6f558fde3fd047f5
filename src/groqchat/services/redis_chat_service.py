"""The chat history: messages in sorted sets, one set a session."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from groqchat.storage import keys
from groqchat.storage.guard import guarded
from groqchat.storage.messages import (
    MICROS_PER_S,
    Message,
    Row,
    decode_rows,
    encode_member,
    index_beyond,
    iso_time,
    micros_of,
    row_id,
    row_micros,
)
from groqchat.storage.session_index import SessionIndex, SessionPage
from groqchat.storage.walk import items_beyond

MAX_PAGE = 1000
# Members read in one round trip: most histories whole, yet a set of long messages in parts.
CHUNK = 200
# A page ends early where its messages reach this size, so that no read fills the memory:
# a thousand messages of the greatest length would be 100 MB and more.
MAX_PAGE_BYTES = 16 * 1024 * 1024

_MICRO_S = 1 / MICROS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    """Messages in time order; count and last time are of the whole session."""

    messages: list[Message]
    message_count: int
    last_message_time: str | None
    has_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """What is known of a session; times in ISO 8601, None where it never expires."""

    session_id: str
    message_count: int
    first_message_time: str
    last_message_time: str
    expires_at: str | None
    ttl_seconds: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    rows: Sequence[Row]
    count: int
    last: Sequence[Row]


class RedisChatService:
    """The async history store, over a client that its caller opens and closes.

    Each operation ends within `timeout_s`. HistoryUnavailable says that Redis is away or
    refuses work for now, HistoryFailed that it holds something else under a session's key.
    """

    def __init__(self, redis: Redis, *, ttl_s: int, timeout_s: float) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._index = SessionIndex(redis)

    async def save_message(
        self, session_id: str, *messages: Message, context: int = 0
    ) -> list[Message]:
        """Store messages in one round trip and let the session live for another TTL.

        Returns up to `context` messages that stood before. Saving a message again changes
        nothing, so a failed save may be repeated.
        """
        key = keys.session_key(session_id)
        members = {encode_member(message): message.score for message in messages}

        def commands(pipe: Pipeline) -> None:
            if context:
                pipe.zrange(key, -context, -1, withscores=True)
            pipe.zadd(key, members)
            keys.keep_alive(pipe, session_id, ttl_s=self._ttl_s, now_s=time.time())

        replies = await self._run(commands)
        return decode_rows(replies[0], session_id=session_id) if context else []

    async def get_session_history(
        self,
        session_id: str,
        *,
        limit: int = MAX_PAGE,
        after: str | None = None,
        before: str | None = None,
        oldest_first: bool = False,
    ) -> HistoryPage:
        """Return a page of a session's messages, always in time order.

        The `limit` messages after or before a message id; with neither the newest, or the
        first with `oldest_first`. An unknown session has none.
        """
        forward = after is not None or (oldest_first and before is None)
        cursor = after or before
        rows: list[Row] = []
        size = 0
        while True:
            want = min(CHUNK, limit + 1 - len(rows))
            chunk = await self._read(session_id, cursor, forward=forward, want=want)
            rows += chunk.rows
            size += sum(len(member) for member, _ in chunk.rows)
            exhausted = len(chunk.rows) < want
            if exhausted or len(rows) > limit or size >= MAX_PAGE_BYTES:
                break
            cursor = row_id(rows[-1])
        page = rows[:limit] if forward else rows[:limit][::-1]
        messages = decode_rows(page, session_id=session_id)
        return HistoryPage(
            messages=messages,
            message_count=chunk.count - (len(page) - len(messages)),
            last_message_time=iso_time(row_micros(chunk.last[0])) if chunk.last else None,
            has_more=len(rows) > limit or not exhausted,
        )

    async def clear_session(self, session_id: str) -> None:
        """Delete a session with all its messages; an unknown one is none to delete."""
        await self._run(lambda pipe: keys.forget(pipe, session_id))

    async def get_session_size(self, session_id: str) -> int:
        """Return the number of messages in a session."""
        replies = await self._run(lambda pipe: pipe.zcard(keys.session_key(session_id)))
        return int(replies[0])

    async def get_all_sessions(
        self,
        *,
        limit: int = MAX_PAGE,
        after: str | None = None,
        before: str | None = None,
        oldest_first: bool = False,
    ) -> SessionPage:
        """Return a page of the live sessions, by last activity, the latest first.

        `after` and `before` take a session id, or a cursor that an earlier page gave.
        """
        async with guarded(self._timeout_s):
            return await self._index.page(
                limit=limit, after=after, before=before, oldest_first=oldest_first
            )

    async def get_session_info(self, session_id: str) -> SessionInfo | None:
        """Return counts and times of a session; None if it does not exist."""
        key = keys.session_key(session_id)

        def commands(pipe: Pipeline) -> None:
            pipe.zcard(key)
            pipe.zrange(key, 0, 0, withscores=True)
            pipe.zrange(key, -1, -1, withscores=True)
            pipe.pttl(key)

        count, first, last, pttl_ms = await self._run(commands)
        if not count:
            return None
        lasting = pttl_ms < 0
        expires_micros = time.time_ns() // 1000 + pttl_ms * 1000
        return SessionInfo(
            session_id=session_id,
            message_count=count,
            first_message_time=iso_time(row_micros(first[0])),
            last_message_time=iso_time(row_micros(last[0])),
            expires_at=None if lasting else iso_time(expires_micros),
            ttl_seconds=None if lasting else round(pttl_ms / 1000),
        )

    async def is_connected(self) -> bool:
        """Tell whether Redis answers."""
        try:
            async with guarded(self._timeout_s):
                return bool(await self._redis.ping())
        except Exception:  # noqa: BLE001 - whatever the reason, the answer is no
            return False

    async def _run(self, commands: Callable[[Pipeline], object]) -> list[Any]:
        """Send commands as one MULTI/EXEC pipeline: one round trip, all of it or nothing."""
        async with guarded(self._timeout_s), self._redis.pipeline(transaction=True) as pipe:
            commands(pipe)
            return await pipe.execute()

    async def _read(
        self, session_id: str, cursor: str | None, *, forward: bool, want: int
    ) -> _Chunk:
        """Read up to `want` rows onwards from a message, or from an end of the session."""
        key = keys.session_key(session_id)
        size = 0
        last: Sequence[Row] = ()

        async def fetch(count: int) -> list[Row]:
            def commands(pipe: Pipeline) -> None:
                pipe.zcard(key)
                pipe.zrange(key, -1, -1, withscores=True)
                _read_range(pipe, key, cursor, forward=forward, count=count)

            nonlocal size, last
            size, last, rows = await self._run(commands)
            return list(rows)

        if cursor is None:
            rows: Sequence[Row] = await fetch(want)
        else:
            rows = await items_beyond(
                fetch,
                lambda rows, complete: index_beyond(
                    rows, cursor, forward=forward, complete=complete
                ),
                want=want,
            )
        return _Chunk(rows=rows, count=size, last=last)


def _read_range(pipe: Pipeline, key: str, cursor: str | None, *, forward: bool, count: int) -> None:
    """Add the read of `count` members from a message's microsecond on, itself included."""
    if cursor is None:
        pipe.zrange(key, 0, count - 1, desc=not forward, withscores=True)
        return
    # Scores that another program wrote may lie between two of our microseconds.
    micros_s = micros_of(cursor) * _MICRO_S
    start, end = (micros_s - _MICRO_S, "+inf") if forward else (micros_s + _MICRO_S, "-inf")
    pipe.zrange(
        key, start, end, desc=not forward, byscore=True, offset=0, num=count, withscores=True
    )
