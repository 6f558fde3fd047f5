"""Responses of Groq that only the operator can resolve, reported in the log without flooding it."""

import logging
import time
from collections.abc import Callable

from groqchat.errors import CompletionUnavailable
from groqchat.services.groq.errors import error_code, is_service_fault

# Each request fails while the fault lasts, so the log repeats it only after this time.
LOG_INTERVAL_S = 60.0
# The codes come from another server. More different ones than this share one report.
MAX_FAULTS = 100
HINTS = {
    401: "check GROQ_API_KEY",
    403: "check the permissions of GROQ_API_KEY",
    407: "check the credentials of the proxy",
}
DEFAULT_HINT = "check GROQ_BASE_URL"
ACCOUNT_HINT = "check the account at console.groq.com"

log = logging.getLogger(__name__)


class ServiceFaults:
    """Recognizes service faults and logs each kind at most once in LOG_INTERVAL_S."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # For each status and code: when it was logged, and how often it occurred since then.
        self._faults: dict[tuple[int, str], tuple[float, int]] = {}

    def check(self, status: int, content: bytes) -> CompletionUnavailable | None:
        """Return and log the error for an error response, None if it is not a service fault."""
        code = error_code(content)
        if not is_service_fault(status, code):
            return None
        self._report(status, code)
        return CompletionUnavailable(f"service fault {status}: {code}")

    def _report(self, status: int, code: str) -> None:
        fault = (status, code) if len(self._faults) < MAX_FAULTS else (status, "")
        now = self._clock()
        logged_at, repeated = self._faults.get(fault, (-LOG_INTERVAL_S, 0))
        if now - logged_at < LOG_INTERVAL_S:
            self._faults[fault] = (logged_at, repeated + 1)
            return
        self._faults[fault] = (now, 0)
        log.error(
            "Groq rejects the requests of this service with status %d %s; %s (%d more since the "
            "last report)",
            *(status, code or "(no error code)", _hint(status), repeated),
        )


def _hint(status: int) -> str:
    return ACCOUNT_HINT if status == 400 else HINTS.get(status, DEFAULT_HINT)  # noqa: PLR2004 - an HTTP status
