"""The `Retry-After` header of Groq: a number of seconds, or a date."""

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

# Groq's longest limits count the requests and tokens of one day.
MAX_SECONDS = 86_400
# Longer than any date.
MAX_CHARS = 64
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


def parse_retry_after(value: str | None) -> float | None:
    """Return the time to wait in seconds, at most MAX_SECONDS; None if the value is not valid."""
    text = (value or "").strip()
    seconds = float(text) if NUMBER.fullmatch(text) else _seconds_until(text)
    return None if seconds is None else min(max(seconds, 0.0), float(MAX_SECONDS))


def _seconds_until(date: str) -> float | None:
    try:
        time_of_retry = parsedate_to_datetime(date[:MAX_CHARS])
    except ValueError:
        return None
    if time_of_retry.tzinfo is None:
        time_of_retry = time_of_retry.replace(tzinfo=UTC)
    return time_of_retry.timestamp() - time.time()
