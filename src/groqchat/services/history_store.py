"""The history store: one sorted set of messages for each session."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any

from redis.asyncio import Redis

from groqchat.errors import HistoryFailed, HistoryUnavailable, SessionCleared, StorageError
from groqchat.fields import MAX_PAGE
from groqchat.retry import Backoff, RetryPolicy
from groqchat.storage import keys
from groqchat.storage.claims import Claim
from groqchat.storage.command_batcher import CommandBatcher, ResentReplies
from groqchat.storage.errors import confirmed, redis_errors
from groqchat.storage.history_reader import (
    MAX_PAGE_BYTES,
    FirstRead,
    HistoryPage,
    StoredTurn,
    check_page,
    read_context,
    read_page,
    read_turn,
)
from groqchat.storage.keys import Command
from groqchat.storage.late_writes import LateWrites
from groqchat.storage.messages import (
    FIRST_CONTEXT,
    Message,
    PromptMessage,
    add_members,
    decode_context,
    encode_member,
    first_read,
)
from groqchat.storage.page_reads import PageReads
from groqchat.storage.retained_messages import Removal, RetainedMessages
from groqchat.storage.session_deletion import delete_session, was_deleted
from groqchat.storage.session_index import SessionIndex, SessionPage
from groqchat.storage.session_info import SessionInfo, read_session_info
from groqchat.storage.write_probe import WriteProbe

# An answer, which Groq has charged for, gets a second attempt if time is left. It follows at once,
# because the batcher has waited between its own attempts.
SAVE_RETRIES = RetryPolicy(attempts=2, backoff=Backoff(base_s=0.0, cap_s=0.0))

log = logging.getLogger(__name__)


class HistoryStore:
    """The async history store. The caller opens and closes the client and the batcher.

    Methods raise HistoryUnavailable if Redis cannot be reached or rejects work for now,
    HistoryFailed if a session's key contains another type or the batcher is closed, and
    InvalidField for an argument that the API rejects. Every operation ends within `timeout_s`.
    """

    def __init__(
        self, redis: Redis, batcher: CommandBatcher, *, ttl_s: int, timeout_s: float
    ) -> None:
        self._redis = redis
        self._batcher = batcher
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._index = SessionIndex(redis)
        self._write_probe = WriteProbe(batcher)
        self._retained = RetainedMessages(batcher.transact, self._index, timeout_s=timeout_s)
        self._late_writes = LateWrites(batcher, self._retained.remove)
        self._page_reads = PageReads()

    async def save_messages(  # noqa: PLR0913 - all but the session are independent options
        self,
        session_id: str,
        *messages: Message,
        context: int = 0,
        context_bytes: int = MAX_PAGE_BYTES,
        user_message: Message | None = None,
        claim: Claim | None = None,
        max_wait_s: float | None = None,
        turn_id: str | None = None,
        more_commands: Sequence[Command] = (),
        is_repeat: bool = False,
    ) -> list[PromptMessage]:
        """Store messages and renew the session's TTL in one transaction with `more_commands`.

        Returns role and content of up to `context` earlier messages, about `context_bytes`. Waits
        at most `max_wait_s`; the write may succeed later. Raises TurnLost, storing nothing, if
        another attempt owns the turn. If a client deleted `user_message`, or the session since
        `turn_id` (checked if it `is_repeat`), removes the messages and raises SessionCleared.
        """
        key = keys.checked_key(session_id)
        asked = None if context else user_message
        members = [encode_member(message) for message in messages]
        is_retry = claim is not None and claim.attempt > 0
        read = first_read(session_id, context, asked, before=messages[0] if is_retry else None)
        touch = keys.touch_session(session_id, ttl_s=self._ttl_s, now_s=time.time())
        commands = [*read, *add_members(key, messages, members), *touch]
        end = time.monotonic() + self._timeout_s
        try:
            fenced = [claim.fence(commands)] if claim else commands
            replies = await self._write([*fenced, *more_commands], max_wait_s)
            is_repeat |= isinstance(replies, ResentReplies)
            has_record = not is_repeat
            if claim:
                replies, has_record = claim.check_reply(replies[0])
            is_missing = asked is not None and not replies[0]
            since = "" if is_missing else claim.turn_id if claim else turn_id
            if not has_record or since == "":
                await self._check_deletion(session_id, messages, asked, claim, since=since)
        except (HistoryUnavailable, asyncio.CancelledError):
            self._late_writes.add(session_id, messages, asked, claim)
            raise
        if not context:
            return []
        found = replies[0][::-1] if is_retry else replies[0]
        again = messages[0] if is_repeat or members[0] in found else None
        if again is None and not len(found) == FIRST_CONTEXT < context:
            return decode_context(found, session_id=session_id)
        first = self._batcher.transact, FirstRead(session_id, found, again)
        return await read_context(*first, context, max_bytes=context_bytes, end=end)

    def _write(
        self, commands: Sequence[Command], max_wait_s: float | None
    ) -> Awaitable[Sequence[Any]]:
        """Return the replies to a transaction, for which to wait at most `max_wait_s`.

        The caller must have no variable for the future: the traceback of an error refers to the
        caller's frame, and the future to the error, which would be a cycle.
        """
        call = self._batcher.transact(commands)
        return call if max_wait_s is None else confirmed(call, max_wait_s)

    async def _check_deletion(
        self,
        session_id: str,
        messages: Sequence[Message],
        asked: Message | None,
        claim: Claim | None,
        *,
        since: str | None,
    ) -> None:
        """Remove messages if their session was deleted since an id; "": `asked` is missing.

        The record of a claim is deleted with the session, but a full Redis may have evicted it.
        """
        if since is None:
            return
        if not since or await was_deleted(self._batcher, session_id, since=since):
            own = [asked] if asked and claim and asked.id == claim.message_id else []
            await self.remove_messages(session_id, [*own, *messages])
            raise SessionCleared(f"session {session_id} was deleted during the turn")

    def checking_late_writes(self) -> AbstractAsyncContextManager[None]:
        """Check the answers that Redis stores after the deadline, until the context exits."""
        return self._late_writes.checking()

    async def try_save(  # noqa: PLR0913 - all but the session are independent options
        self,
        session_id: str,
        *messages: Message,
        user_message: Message | None = None,
        claim: Claim | None = None,
        max_wait_s: float | None = None,
        turn_id: str | None = None,
        more_commands: Sequence[Command] = (),
    ) -> bool:
        """Store messages, with a second attempt, and return whether Redis confirmed the write.

        Both attempts wait at most `max_wait_s`, by default the deadline of one operation. Raises
        SessionCleared and TurnLost. With `turn_id`, an earlier save of the messages has failed.
        """
        end = time.monotonic() + (self._timeout_s if max_wait_s is None else max_wait_s)
        attempt = 0
        while True:
            try:
                await self.save_messages(
                    session_id,
                    *messages,
                    user_message=user_message,
                    claim=claim,
                    max_wait_s=max_wait_s,
                    turn_id=turn_id,
                    more_commands=more_commands,
                    is_repeat=True,
                )
            except StorageError as error:
                log.warning("could not save messages of session %s: %s", session_id, error)
                if isinstance(error, SessionCleared):
                    raise
                max_wait_s = end - time.monotonic()
                is_final = not isinstance(error, HistoryUnavailable) or max_wait_s <= 0
                if is_final or not await SAVE_RETRIES.wait(attempt):
                    return False
            else:
                return True
            attempt += 1

    async def remove_messages(self, session_id: str, messages: Sequence[Message]) -> None:
        """Remove messages; a session without messages is removed from the index."""
        keys.checked_key(session_id)
        members = tuple(encode_member(message) for message in messages)
        await self._retained.remove(Removal(session_id=session_id, members=members))

    async def retain_messages(
        self, session_id: str, messages: Sequence[Message], claim: Claim | None
    ) -> bool:
        """Prevent `try_remove` from removing messages; return False if one does not exist.

        Raises TurnLost if another attempt than that of `claim` owns the turn.
        """
        return await self._retained.retain(session_id, messages, claim)

    async def try_remove(
        self,
        session_id: str,
        *messages: Message,
        claim: Claim | None = None,
        max_wait_s: float | None = None,
        is_stored: bool = True,
    ) -> None:
        """Remove messages that no other request retains.

        Removes them again later if Redis is not available, or without `is_stored`: Redis has not
        confirmed that it stored them, and may do so late. They also stay if another attempt than
        that of `claim` owns the turn. Waits at most `max_wait_s`, by default the deadline of one
        operation.
        """
        removal = Removal(
            session_id=session_id,
            members=tuple(encode_member(message) for message in messages),
            claim=claim,
            leaves_retained=True,
        )
        try:
            async with redis_errors(self._timeout_s if max_wait_s is None else max_wait_s):
                await self._retained.remove(removal)
        except StorageError as error:
            log.warning("messages of session %s are removed later: %s", session_id, error)
            is_stored = False
        if not is_stored:
            self._late_writes.remove(removal)

    async def find_turn(self, session_id: str, ids: Sequence[str], claim: Claim) -> StoredTurn:
        """Return what earlier attempts have stored; `ids` are those of the request's messages.

        Raises TurnLost if another attempt owns the turn.
        """
        keys.checked_key(session_id)
        transact = partial(claim.execute, self._batcher.transact)
        # Another program may have written to the key of the session.
        turn = StoredTurn(messages=[], answers=[])
        async with redis_errors(self._timeout_s):
            with suppress(HistoryFailed):
                turn = await read_turn(ids, transact, session_id)
        return turn

    async def get_history_page(
        self,
        session_id: str,
        *,
        limit: int = MAX_PAGE,
        after: str | None = None,
        before: str | None = None,
        oldest_first: bool = False,
    ) -> HistoryPage:
        """Return a page of a session's messages, always in time order.

        The page contains up to `limit` messages after one message id, before another, or between
        them; with neither id the newest messages, or the oldest with `oldest_first`. The page of
        an unknown session is empty.
        """
        check_page(limit=limit, after=after, before=before)
        keys.checked_key(session_id)
        async with redis_errors(self._timeout_s), self._page_reads.reading() as counted:
            return await read_page(
                self._batcher.transact,
                session_id,
                counted,
                limit=limit,
                after=after,
                before=before,
                oldest_first=oldest_first,
            )

    async def clear_session(self, session_id: str) -> None:
        """Delete a session: messages, events of its turns and answers of its Idempotency-Keys.

        Has no effect on an unknown session.
        """
        keys.checked_key(session_id)
        async with redis_errors(self._timeout_s):
            unannounced = await delete_session(self._batcher, session_id)
        if unannounced:
            self._late_writes.announce(session_id, unannounced)

    async def get_session_size(self, session_id: str) -> int:
        """Return the number of messages in a session."""
        async with redis_errors(self._timeout_s):
            (count,) = await self._batcher.transact([("ZCARD", keys.checked_key(session_id))])
        return int(count)

    async def get_sessions_page(
        self,
        *,
        limit: int = MAX_PAGE,
        after: str | None = None,
        before: str | None = None,
        oldest_first: bool = False,
    ) -> SessionPage:
        """Return a page of the live sessions, by default the latest activity first.

        `after` and `before` accept a session id or the cursor of an earlier page.
        """
        self._batcher.check_open()
        async with redis_errors(self._timeout_s):
            return await self._index.page(
                limit=limit, after=after, before=before, oldest_first=oldest_first
            )

    async def get_session_info(self, session_id: str) -> SessionInfo | None:
        """Return counts and times of a session, or None if it does not exist."""
        keys.checked_key(session_id)
        async with redis_errors(self._timeout_s):
            return await read_session_info(self._batcher.transact, session_id)

    async def write_state(self) -> str:
        """Return whether Redis accepts writes: `ok`, `unreachable` or `rejects writes: CODE`."""
        return await self._write_probe.state()

    async def is_connected(self) -> bool:
        """Return whether Redis answers within the deadline."""
        try:
            self._batcher.check_open()
            async with redis_errors(self._timeout_s):
                return bool(await self._redis.ping())
        except Exception:  # noqa: BLE001 - every failure means: not connected
            return False
