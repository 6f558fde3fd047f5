"""Late writes: messages that Redis may store after their deadline, although they must not stay."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from groqchat.background import background_task
from groqchat.errors import HistoryUnavailable, StorageError
from groqchat.storage import keys
from groqchat.storage.claims import Claim
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.messages import Message, member_id
from groqchat.storage.retained_messages import Removal
from groqchat.storage.session_deletion import announce, was_deleted

# A paused Redis executes what it has received when it runs again, before or after the commands of
# other connections. A broken network usually delivers delayed commands within seconds, too.
CHECK_INTERVAL_S = 1.0
CHECKS = 5
# A process that ends waits for Redis twice at most, so that it ends in time.
FINAL_CHECKS = 2
FINAL_INTERVAL_S = 0.2
# Checks whose commands share a round trip to Redis.
CONCURRENT_CHECKS = 500
# An entry takes about 500 bytes. Beyond this number, the oldest is not checked any more.
MAX_WRITES = 10_000
# One each second, for twice as long as Redis retains the events of a turn without a key.
MAX_ANNOUNCEMENTS = 2 * keys.TURN_RETENTION_S

Item = TypeVar("Item")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Write:
    """Messages, by id and score, and the condition under which they may stay.

    With `user_score`, the user message must exist. Otherwise the session must not have been deleted
    since the id `since`. If the record of the claim exists, the turn began after the deletion.
    """

    session_id: str
    messages: tuple[tuple[str, str], ...]
    user_score: str | None
    since: str
    claim: Claim | None


class LateWrites:
    """Checks unconfirmed writes of messages for five seconds, and removes what must not stay.

    Also removes messages and announces deletions of sessions for which Redis was not available.
    """

    def __init__(
        self,
        batcher: CommandBatcher,
        remove: Callable[[Removal], Awaitable[None]],
    ) -> None:
        self._batcher = batcher
        self._remove = remove
        # Sessions and the last of their deleted turns, and how often Redis rejected them.
        self._deletions: dict[tuple[str, str], int] = {}
        # The messages to remove, and how often Redis has confirmed it.
        self._removals: dict[Removal, int] = {}
        # Each write, and how often Redis has answered its check.
        self._writes: dict[_Write, int] = {}

    def add(
        self,
        session_id: str,
        messages: Sequence[Message],
        user_message: Message | None,
        claim: Claim | None,
    ) -> None:
        """Check later that the user message still exists or, without it, the session."""
        since = claim.turn_id if claim else messages[0].id
        ids = tuple((each.id, each.score_text) for each in messages)
        score = user_message.score_text if user_message else None
        self._writes[_Write(session_id, ids, score, since, claim)] = 0
        if len(self._writes) > MAX_WRITES:
            del self._writes[next(iter(self._writes))]

    def remove(self, removal: Removal) -> None:
        """Remove messages several times, because Redis may execute a write of them late."""
        self._removals[removal] = 0
        if len(self._removals) > MAX_WRITES:
            del self._removals[next(iter(self._removals))]

    def announce(self, session_id: str, last_turn: str) -> None:
        """Announce a deletion later."""
        self._deletions[session_id, last_turn] = 0
        if len(self._deletions) > MAX_WRITES:
            del self._deletions[next(iter(self._deletions))]

    @asynccontextmanager
    async def checking(self) -> AsyncIterator[None]:
        """Check the writes until the context exits, and then twice at most."""
        async with background_task("check late writes", self._check_all):
            yield
        for _ in range(FINAL_CHECKS):
            if self._writes or self._deletions or self._removals:
                await self._check_all()
                await asyncio.sleep(FINAL_INTERVAL_S)

    async def _check_all(self) -> float:
        await self._announce_all()
        await _run_all(self._removals, self._remove)
        await _run_all(self._writes, self._check)
        return CHECK_INTERVAL_S

    async def _announce_all(self) -> None:
        for deletion, failures in list(self._deletions.items()):
            del self._deletions[deletion]
            try:
                await announce(self._batcher, *deletion)
            except StorageError:
                if failures + 1 < MAX_ANNOUNCEMENTS:
                    self._deletions[deletion] = failures + 1
                # The others would fail too.
                break

    async def _check(self, write: _Write) -> None:
        """Remove messages that must not stay."""
        if await self._may_stay(write):
            return
        key = keys.session_key(write.session_id)
        found = await self._batcher.transact(
            [("ZRANGE", key, score, score, "BYSCORE") for _, score in write.messages]
        )
        ids = {message_id for message_id, _ in write.messages}
        # All members in question are the service's own, so their ids do not depend on a score.
        members = [each for reply in found for each in reply if member_id((each, 0.0)) in ids]
        if members:
            log.info("removing late messages from session %s", write.session_id)
            await self._remove(Removal(session_id=write.session_id, members=tuple(members)))

    async def _may_stay(self, write: _Write) -> bool:
        if write.user_score is not None:
            key = keys.session_key(write.session_id)
            count = ("ZCOUNT", key, write.user_score, write.user_score)
            return bool((await self._batcher.transact([count]))[0])
        if not await was_deleted(self._batcher, write.session_id, since=write.since):
            return True
        if write.claim is None:
            return False
        (has_record,) = await EventLog(self._batcher).have_records([write.claim])
        return has_record


async def _run_all(checks: dict[Item, int], run: Callable[[Item], Awaitable[None]]) -> None:
    """Run the check of each item, and drop the items that have been checked often enough.

    If Redis is not available, a check does not count. The checks share round trips.
    """
    items = list(checks)
    for begin in range(0, len(items), CONCURRENT_CHECKS):
        some = items[begin : begin + CONCURRENT_CHECKS]
        errors = await asyncio.gather(*map(run, some), return_exceptions=True)
        for item, error in zip(some, errors, strict=True):
            if isinstance(error, HistoryUnavailable):
                # The others would wait for the same deadline.
                return
            if error is not None:
                log.warning("could not check a late write: %s", error)
            count = checks.pop(item, CHECKS) + 1
            if count < CHECKS:
                checks[item] = count
