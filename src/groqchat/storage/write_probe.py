"""The write probe: whether Redis accepts writes, not only reads."""

import asyncio
import logging
import re
import time

from groqchat.errors import StorageError
from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher

# Probes of several load balancers within this time share one result.
MAX_AGE_S = 1.0
OK = "ok"
UNREACHABLE = "unreachable"
# The error codes of a server that answers but does not accept writes, by the code or by redis-py's
# class for it, whose text lacks the code.
REJECTIONS = {
    "OOM": "OOM",
    "OutOfMemoryError": "OOM",
    "READONLY": "READONLY",
    "ReadOnlyError": "READONLY",
    "MISCONF": "MISCONF",
    "NOREPLICAS": "NOREPLICAS",
    "NOPERM": "NOPERM",
    "NoPermissionError": "NOPERM",
}

log = logging.getLogger(__name__)


class WriteProbe:
    """Writes one small key with a TTL; concurrent and frequent callers share one write.

    It logs once why Redis rejects writes.
    """

    def __init__(self, batcher: CommandBatcher) -> None:
        self._batcher = batcher
        self._state = UNREACHABLE
        self._probed_at = -MAX_AGE_S
        self._lock = asyncio.Lock()

    async def state(self) -> str:
        """Return `ok`, `unreachable`, or `rejects writes: CODE` with the code of Redis.

        Ends within the deadline of the batcher.
        """
        async with self._lock:
            if time.monotonic() - self._probed_at > MAX_AGE_S:
                self._state = await self._probe()
                self._probed_at = time.monotonic()
            return self._state

    async def _probe(self) -> str:
        try:
            await self._batcher.transact(keys.write_probe())
        except StorageError as error:
            words = re.findall(r"\w+", error.detail)
            codes = [REJECTIONS[word] for word in words if word in REJECTIONS]
            state = f"rejects writes: {codes[0]}" if codes else UNREACHABLE
            if codes and state != self._state:
                log.warning("Redis %s (%s)", state, error.detail)
            return state
        return OK
