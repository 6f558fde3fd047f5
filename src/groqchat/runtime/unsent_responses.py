"""Large responses that their clients have not read yet, limited in bytes."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from groqchat.errors import Overloaded

# Sixteen pages of the maximum size. The limit of each worker should be far below the memory of a
# small container.
MAX_UNSENT_BYTES = 128 * 1024 * 1024
# A client on a usual connection has read a page by then. If the limit is reached, older responses
# are cut off, so that clients that do not read block only themselves.
MIN_AGE_S = 1.0
RETRY_AFTER_S = 1.0


@dataclass(slots=True, eq=False)
class _Unsent:
    """A response that is being sent."""

    transport: asyncio.Transport
    size: int
    since_s: float


class UnsentResponses:
    """Counts large responses until their clients have read them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The oldest one first.
        self._open: dict[_Unsent, None] = {}
        self._bytes = 0

    def add(
        self, transport: asyncio.Transport, size: int, *, is_repeatable: bool
    ) -> Callable[[], None]:
        """Count a response; call the result when it is sent.

        Raises Overloaded if too many wait, and the client can repeat the request at no cost.
        """
        now_s = self._clock()
        while self._bytes + size > MAX_UNSENT_BYTES and self._open:
            oldest = next(iter(self._open))
            if now_s - oldest.since_s < MIN_AGE_S:
                if is_repeatable:
                    raise Overloaded(retry_after_s=RETRY_AFTER_S)
                break
            self._remove(oldest)
            oldest.transport.abort()
        unsent = _Unsent(transport, size, now_s)
        self._open[unsent] = None
        self._bytes += size
        return lambda: self._remove(unsent)

    def _remove(self, unsent: _Unsent) -> None:
        if unsent in self._open:
            del self._open[unsent]
            self._bytes -= unsent.size
