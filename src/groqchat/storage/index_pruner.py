"""Removal of expired sessions from the session index."""

import logging
from contextlib import AbstractAsyncContextManager

from redis.asyncio import Redis

from groqchat.background import background_task
from groqchat.errors import StorageError
from groqchat.storage.errors import redis_errors
from groqchat.storage.session_index import PRUNE_BATCH, SessionIndex

# Lists leave expired sessions out anyway; the entries of one minute need little memory.
INTERVAL_S = 60.0

log = logging.getLogger(__name__)


def prune_index(redis: Redis, timeout_s: float) -> AbstractAsyncContextManager[None]:
    """Remove expired sessions from the index every minute until the context exits."""
    index = SessionIndex(redis)

    async def prune() -> float:
        try:
            async with redis_errors(timeout_s):
                removed = await index.prune()
        except StorageError as error:
            log.warning("could not prune the session index: %s", error)
            return INTERVAL_S
        # A full batch means that more expired entries may exist.
        return 0 if removed >= PRUNE_BATCH else INTERVAL_S

    return background_task("prune the session index", prune)
