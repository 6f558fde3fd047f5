"""Large responses that their clients have not read yet, limited in bytes."""

import asyncio
import logging
import time
from collections import Counter
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

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Unsent:
    """A response that is being sent."""

    transport: asyncio.Transport
    body: bytes
    since_s: float


class UnsentResponses:
    """Counts large responses until their clients have read them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The oldest one first.
        self._open: dict[_Unsent, None] = {}
        # The bytes of all bodies, and the responses of each: a rendered page is one object.
        self._bytes = 0
        self._shared: Counter[int] = Counter()

    def add(
        self, transport: asyncio.Transport, body: bytes, *, is_repeatable: bool
    ) -> Callable[[], None]:
        """Count a response; call the result when it is sent.

        Raises Overloaded if too many wait, and the client can repeat the request at no cost.
        """
        now_s = self._clock()
        size = 0 if self._shared[id(body)] else len(body)
        while self._bytes + size > MAX_UNSENT_BYTES and self._open:
            oldest = next(iter(self._open))
            if now_s - oldest.since_s < MIN_AGE_S:
                if is_repeatable:
                    raise Overloaded(retry_after_s=RETRY_AFTER_S)
                break
            self._remove(oldest)
            oldest.transport.abort()
            log.info(
                "cut off a response of %d bytes that its client does not read", len(oldest.body)
            )
        unsent = _Unsent(transport, body, now_s)
        self._open[unsent] = None
        self._bytes += 0 if self._shared[id(body)] else len(body)
        self._shared[id(body)] += 1
        return lambda: self._remove(unsent)

    def _remove(self, unsent: _Unsent) -> None:
        if unsent in self._open:
            del self._open[unsent]
            self._shared[id(unsent.body)] -= 1
            if not self._shared[id(unsent.body)]:
                del self._shared[id(unsent.body)]
                self._bytes -= len(unsent.body)
