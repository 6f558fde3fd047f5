"""Retries of requests to Groq: which failures, how many, and after which wait."""

import asyncio

import aiohttp
import groq

from groqchat.errors import RateLimited
from groqchat.retry import Backoff, Deadline, RetryBudget
from groqchat.services.groq.aiohttp_internals import REUSE
from groqchat.services.groq.errors import is_retryable, retry_after_s
from groqchat.services.groq.rate_limits import RateLimits

# If a request would wait longer than this for a rate limit, its caller receives the 429 at once.
MAX_RETRY_AFTER_S = 5.0
# The errors of a connection that breaks before the first byte of a response.
BROKEN = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)
BACKOFF = Backoff(base_s=0.25, cap_s=4.0, jitter=1.0)
# An outage of Groq multiplies the requests by 1.2, not by 1 + GROQ_MAX_RETRIES. The minimum lets a
# service with little traffic retry each failure. The capacity covers a short burst of failures.
RETRY_SHARE = 0.2
MIN_RETRIES_PER_S = 5.0
MAX_RETRY_BURST = 100.0


class GroqRetries:
    """Decides whether a failed request is sent again; the budget is shared by all requests."""

    def __init__(self, max_retries: int, rate_limits: RateLimits) -> None:
        self._max_retries = max_retries
        self._rate_limits = rate_limits
        self.budget = RetryBudget(
            share=RETRY_SHARE, min_per_s=MIN_RETRIES_PER_S, capacity=MAX_RETRY_BURST
        )

    async def wait(
        self, error: groq.GroqError, attempt: int, *, deadline: Deadline, model: str
    ) -> bool:
        """Wait until a failed request may be sent again; return False at once if it may not.

        The first attempt is 0.
        """
        reuse = REUSE.get()
        if reuse is not None and isinstance(error.__cause__, BROKEN) and reuse.end():
            # At once, and even without retries: Groq has most probably not received the request.
            return True
        requested_s = retry_after_s(error)
        is_limit = isinstance(error, groq.RateLimitError) and bool(requested_s)
        if is_limit:
            self._rate_limits.close(model, requested_s)
        if attempt >= self._max_retries or not is_retryable(error):
            return False
        delay_s = BACKOFF.delay_s(attempt) if requested_s is None else requested_s
        if delay_s > MAX_RETRY_AFTER_S or delay_s >= deadline.left_s or not self.budget.take():
            return False
        if not is_limit:
            await asyncio.sleep(delay_s)
            return True
        try:
            max_wait_s = min(MAX_RETRY_AFTER_S, deadline.left_s)
            await self._rate_limits.wait(model, max_wait_s=max_wait_s)
        except RateLimited:
            self.budget.refund()
            return False
        return True
