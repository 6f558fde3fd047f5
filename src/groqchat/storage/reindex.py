"""Adding the sessions that exist in Redis to the session index."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from redis.asyncio import Redis

from groqchat.fields import is_session_id
from groqchat.storage import keys
from groqchat.storage.session_index import SessionIndex

# The COUNT of each SCAN, which limits its work: Redis serves other clients between two SCANs.
SCAN_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The result of one SCAN: sessions in the index now, and keys with an invalid session id."""

    listed: int
    unaddressable: int


async def reindex(redis: Redis) -> AsyncIterator[Progress]:
    """Add every existing session to the index; yield the result of each SCAN."""
    index = SessionIndex(redis)
    cursor = 0
    while True:
        cursor, found = await redis.scan(
            cursor, match=f"{keys.SESSION_PREFIX}*", count=SCAN_BATCH, _type="ZSET"
        )
        ids = [keys.session_id_of(key) for key in found if isinstance(key, bytes)]
        addressable = [session_id for session_id in ids if is_session_id(session_id)]
        listed = await index.add_existing(addressable) if addressable else 0
        yield Progress(listed=listed, unaddressable=len(ids) - len(addressable))
        if cursor == 0:
            return
