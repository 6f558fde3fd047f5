"""Keeping the index of sessions from growing for ever."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis

from groqchat.errors import StorageError
from groqchat.storage.guard import guarded
from groqchat.storage.session_index import PRUNE_BATCH, SessionIndex

# Expired sessions are not listed anyway; a minute's worth of them weighs little.
INTERVAL_S = 60.0

log = logging.getLogger(__name__)


@asynccontextmanager
async def housekeeping(redis: Redis, timeout_s: float) -> AsyncIterator[None]:
    """Keep the index small for as long as the block runs."""
    stop = asyncio.Event()
    task = asyncio.create_task(_keep_index(redis, timeout_s, stop))
    try:
        yield
    finally:
        # Not cancelled: redis-py swallows a cancellation that meets a finished send.
        stop.set()
        await task


async def _keep_index(redis: Redis, timeout_s: float, stop: asyncio.Event) -> None:
    """Remove expired sessions from the index, now and then, until told to stop."""
    index = SessionIndex(redis)
    while not stop.is_set():
        try:
            async with guarded(timeout_s):
                removed = await index.prune()
        except StorageError as error:
            log.warning("could not prune the index of sessions: %s", error)
            removed = 0
        # A full batch leaves more to do.
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0 if removed >= PRUNE_BATCH else INTERVAL_S)
