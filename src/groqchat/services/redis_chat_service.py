"""The chat history: messages in sorted sets, one set a session."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from groqchat.errors import SessionCleared
from groqchat.storage import keys
from groqchat.storage.batching import Batcher, Command
from groqchat.storage.guard import guarded
from groqchat.storage.history_reader import MAX_PAGE_BYTES, HistoryReader
from groqchat.storage.messages import (
    INCOMPLETE,
    Message,
    Spoken,
    decode_context,
    decode_member,
    encode_member,
    iso_time,
    row_id,
    row_micros,
    rows_before,
    rows_of,
    warn_of_corrupt_members,
)
from groqchat.storage.session_index import SessionIndex, SessionPage

MAX_PAGE = 1000
# What a turn reads along with its first write. Even of the longest messages this is a few MB;
# all that a model could be given may be a hundred times that.
FIRST_CONTEXT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    """Messages in time order; count and last time are of the whole session."""

    messages: list[Message]
    message_count: int
    last_message_time: str | None
    has_more: bool
    first_id: str | None
    last_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """What is known of a session; times in ISO 8601, None where it never expires."""

    session_id: str
    message_count: int
    first_message_time: str
    last_message_time: str
    expires_at: str | None
    ttl_seconds: int | None


class RedisChatService:
    """The async history store, over a client that its caller opens and closes.

    HistoryUnavailable says that Redis is away or refuses work for now, HistoryFailed that it
    holds something else under a session's key. A save may wait `timeout_s` to be sent and as
    long for its reply; each other operation ends within `timeout_s`.
    """

    def __init__(self, redis: Redis, *, ttl_s: int, timeout_s: float) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self.batcher = Batcher(redis, timeout_s=timeout_s)
        self._index = SessionIndex(redis)

    async def close(self) -> None:
        """Let what is under way end, before the client is closed."""
        await self.batcher.close()

    async def save_message(
        self,
        session_id: str,
        *messages: Message,
        context: int = 0,
        context_bytes: int | None = None,
        question: Message | None = None,
    ) -> list[Spoken]:
        """Store messages in one round trip and let the session live for another TTL.

        Returns role and content of up to `context` messages that stood before; those behind the
        latest FIRST_CONTEXT are read in further round trips, while less than `context_bytes` have
        come. Saving a message again changes nothing, so a failed save may be repeated. With
        `question`, raises SessionCleared and stores nothing if that message is no longer there.
        """
        key = keys.session_key(session_id)
        now_s = time.time()
        commands: list[Command] = []
        if context:
            commands.append(("ZRANGE", key, -min(context, FIRST_CONTEXT), -1))
        elif question:
            asked_at = question.score_text
            commands.append(("ZCOUNT", key, asked_at, asked_at))
        members = [encode_member(message) for message in messages]
        scored: list[str | bytes] = []
        for message, member in zip(messages, members, strict=True):
            scored += (message.score_text, member)
        commands.append(("ZADD", key, *scored))
        commands += keys.keep_alive(session_id, ttl_s=self._ttl_s, now_s=now_s)
        replies = await self.batcher.transact(commands)
        if question and not context and not replies[0]:
            await self._take_back(session_id, messages)
        if not context:
            return []
        before = replies[0]
        left = context - len(before)
        # Where a save is repeated, what it stores may stand there already.
        if members[0] in before:
            before = before[: before.index(members[0])]
        earlier = decode_context(before, session_id=session_id)
        if left and len(replies[0]) == FIRST_CONTEXT:
            read = sum(len(spoken["content"]) for spoken in earlier)
            size = MAX_PAGE_BYTES if context_bytes is None else context_bytes
            if read < size:
                return [*await self._older(key, replies[0][0], left, size - read), *earlier]
        return earlier

    async def drop_incomplete_answer(self, session_id: str, question: Message) -> None:
        """Remove the answer that follows a question, where it was cut short."""
        key = keys.session_key(session_id)
        behind = ("ZRANGE", key, f"({question.score_text}", "+inf", "BYSCORE", "LIMIT", 0, 1)
        async with guarded(self._timeout_s):
            (rows,) = await self.batcher.transact([(*behind, "WITHSCORES")])
            for row in rows_of(rows):
                answer = decode_member(*row)
                if answer and answer.role == "assistant" and answer.status == INCOMPLETE:
                    await self.batcher.transact([("ZREM", key, row[0])])

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

        The `limit` messages after or before a message id, or those between two; with neither the
        newest, or the first with `oldest_first`. An unknown session has none.
        """
        forward = after is not None or (oldest_first and before is None)
        key = keys.session_key(session_id)
        reader = HistoryReader(self.batcher.transact, key, forward=forward)
        async with guarded(self._timeout_s):
            entries = await reader.read(after or before, limit=limit)
        if not forward:
            entries.reverse()
        elif before is not None:
            rows = [row for row, _ in entries]
            end = rows_before([*rows, *reader.next], before)
            reader.has_more = reader.has_more and end > len(entries)
            entries = entries[:end]
        messages = [message for _, message in entries if message is not None]
        if len(messages) < len(entries):
            warn_of_corrupt_members(len(entries) - len(messages), session_id)
        ids = [message.id for message in messages] or [row_id(row) for row, _ in entries]
        return HistoryPage(
            messages=messages,
            message_count=reader.count,
            last_message_time=iso_time(row_micros(reader.last[0])) if reader.last else None,
            has_more=reader.has_more,
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
        )

    async def clear_session(self, session_id: str) -> None:
        """Delete a session with all its messages; an unknown one is none to delete."""
        async with guarded(self._timeout_s):
            await self.batcher.transact(keys.forget(session_id))

    async def get_session_size(self, session_id: str) -> int:
        """Return the number of messages in a session."""
        async with guarded(self._timeout_s):
            (count,) = await self.batcher.transact([("ZCARD", keys.session_key(session_id))])
        return int(count)

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
        commands: list[Command] = [
            ("ZCARD", key),
            ("ZRANGE", key, 0, 0, "WITHSCORES"),
            ("ZRANGE", key, -1, -1, "WITHSCORES"),
            ("PTTL", key),
        ]
        async with guarded(self._timeout_s):
            count, first, last, pttl_ms = await self.batcher.transact(commands)
        if not count:
            return None
        lasting = pttl_ms < 0
        expires_micros = time.time_ns() // 1000 + pttl_ms * 1000
        return SessionInfo(
            session_id=session_id,
            message_count=count,
            first_message_time=iso_time(row_micros(rows_of(first)[0])),
            last_message_time=iso_time(row_micros(rows_of(last)[0])),
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

    async def _older(self, key: str, member: bytes, count: int, size: int) -> list[Spoken]:
        """Return up to `count` messages before a member, and little more than `size` bytes."""
        async with guarded(self._timeout_s):
            (score,) = await self.batcher.transact([("ZSCORE", key, member)])
            if score is None:
                return []
            reader = HistoryReader(self.batcher.transact, key, forward=False)
            entries = await reader.read((member, float(score)), limit=count, max_bytes=size)
        return [
            {"role": message.role, "content": message.content}
            for _, message in reversed(entries)
            if message is not None
        ]

    async def remove_messages(self, session_id: str, messages: Sequence[Message]) -> None:
        """Remove messages; a session that has no other is gone then."""
        key = keys.session_key(session_id)
        members = map(encode_member, messages)
        _, exists = await self.batcher.transact([("ZREM", key, *members), ("EXISTS", key)])
        if not exists:
            await self.batcher.transact(keys.unlist(session_id))
            # Somebody may have spoken in the session in between: then it is listed again.
            async with guarded(self._timeout_s):
                await self._index.add_existing([session_id])

    async def _take_back(self, session_id: str, messages: Sequence[Message]) -> None:
        """Remove an answer whose question was deleted while the model thought."""
        await self.remove_messages(session_id, messages)
        raise SessionCleared(f"session {session_id} was cleared in mid-turn")
