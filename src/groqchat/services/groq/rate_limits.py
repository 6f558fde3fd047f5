"""Rate limits of Groq: how long the process waits after a 429, and how it starts again.

Groq limits each model separately, for all requests with the service's API key together. Without a
memory, each request would learn of the limit from a 429 of its own, and would then retry.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from groqchat.errors import RateLimited

# If Groq asks for more, one request per minute learns whether the limit still applies.
MAX_CLOSED_S = 60.0
# The time between the first requests after a limit, so that they do not exceed it again at once.
# Each success halves it.
FIRST_INTERVAL_S = 0.05
# More than 1,000 requests per second to one model: the limit is over.
MIN_INTERVAL_S = 0.001
# Groq's shortest limits count the requests and tokens of one minute.
MEMORY_S = 60.0
# More models than Groq has. Clients of the OpenAI-compatible endpoint can invent names.
MAX_MODELS = 1000
# Longer than the name of any model. Names that begin with the same characters share a limit.
MAX_NAME_CHARS = 64

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Limit:
    """A limit of one model: when its requests may start, in the time of the clock."""

    closed_until: float
    next_start: float
    interval_s: float = FIRST_INTERVAL_S


class RateLimits:
    """The rate limits that Groq has reported to this process, by model.

    While a limit is closed, no request starts. Afterwards requests start one by one, at growing
    speed. A caller that would wait too long receives RateLimited at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Empty if no limit was reported recently: the caller then needs no other method.
        self.by_model: dict[str, _Limit] = {}

    def close(self, model: str, retry_after_s: float | None) -> None:
        """Let no request for a model start before the time that a 429 of Groq names, if any."""
        if not retry_after_s:
            return
        now = self._clock()
        model = model[:MAX_NAME_CHARS]
        closed_until = now + min(retry_after_s, MAX_CLOSED_S)
        limit = self.by_model.get(model)
        if limit is None or now >= limit.closed_until:
            log.warning("Groq limits the model %r for %.1f s", model, closed_until - now)
        if limit is None:
            self._make_room(now)
            limit = self.by_model[model] = _Limit(closed_until, closed_until)
        limit.closed_until = max(limit.closed_until, closed_until)
        limit.next_start = max(limit.next_start, limit.closed_until)
        limit.interval_s = FIRST_INTERVAL_S

    def succeed(self, model: str) -> None:
        """Let the next requests for a model start faster, because Groq has accepted one."""
        model = model[:MAX_NAME_CHARS]
        limit = self.by_model.get(model)
        if limit is None or self._clock() < limit.closed_until:
            return
        limit.interval_s /= 2
        if limit.interval_s < MIN_INTERVAL_S:
            del self.by_model[model]

    async def wait(self, model: str, *, max_wait_s: float) -> None:
        """Wait until a request for a model may start.

        Raises RateLimited at once if that takes longer than `max_wait_s`.
        """
        give_up_at = self._clock() + max_wait_s
        model = model[:MAX_NAME_CHARS]
        while True:
            delay_s = self._reserve_start(model, give_up_at)
            if not delay_s:
                return
            await asyncio.sleep(delay_s)
            limit = self.by_model.get(model)
            # Another request may have exceeded the limit meanwhile.
            if limit is None or self._clock() >= limit.closed_until:
                return

    def _reserve_start(self, model: str, give_up_at: float) -> float:
        """Return the time until the next free start, in seconds, and make the start unavailable."""
        limit = self.by_model.get(model)
        now = self._clock()
        if limit is None or now - limit.next_start > MEMORY_S:
            self.by_model.pop(model, None)
            return 0.0
        start = max(now, limit.next_start)
        if start > give_up_at:
            raise RateLimited("a limit that Groq has reported before", retry_after_s=start - now)
        limit.next_start = start + limit.interval_s
        return start - now

    def _make_room(self, now: float) -> None:
        """Remove limits that are no longer closed, or all of them, if there are MAX_MODELS."""
        if len(self.by_model) < MAX_MODELS:
            return
        closed = {
            model: limit for model, limit in self.by_model.items() if now < limit.closed_until
        }
        self.by_model = closed if len(closed) < MAX_MODELS else {}


def rate_limit_body(retry_after_s: float) -> bytes:
    """Return the body of a 429 in the format of Groq."""
    message = f"Rate limit reached. Please try again in {retry_after_s:.3g}s."
    error = {"message": message, "type": "requests", "code": "rate_limit_exceeded"}
    return orjson.dumps({"error": error})
