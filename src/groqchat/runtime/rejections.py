"""Connections that a limit rejects, in the log.

They have no line in the access log: a client without any effort causes thousands of them.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

# A limit is usually reached for minutes. Its line repeats, so that the end is visible too.
LOG_INTERVAL_S = 10.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Count:
    """The rejections by one limit since its last line."""

    logged_s: float
    rejected: int = 0
    address: str = ""


class Rejections:
    """Counts rejections by the setting that limits; logs each setting once in LOG_INTERVAL_S."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[str, _Count] = {}

    def add(self, setting: str, address: str) -> None:
        """Count a rejected connection."""
        count = self._counts.get(setting)
        if count is None:
            count = self._counts[setting] = _Count(logged_s=self._clock() - LOG_INTERVAL_S)
        count.rejected += 1
        count.address = address

    def log(self) -> None:
        """Log the rejections that were counted; call this method about once a second."""
        for setting, count in self._counts.items():
            if count.rejected and self._clock() - count.logged_s >= LOG_INTERVAL_S:
                log.warning(
                    "%s is reached: rejected %d connection(s), the last one of %s",
                    setting,
                    count.rejected,
                    count.address,
                )
                count.logged_s = self._clock()
                count.rejected = 0
