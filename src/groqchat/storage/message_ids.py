"""Message ids: 13 hexadecimal digits of microseconds since the epoch, then 4 random digits.

Ids sort by time, and an id contains the score of its message. The messages of one request and their
answers have the same random digits, from 0000 to 7fff: see `exchanges.py`. A message that is stored
alone has digits from 8000 on.
"""

import random
import re
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

MESSAGE_ID = re.compile(r"[0-9a-f]{17}")
MICROS_DIGITS = 13
ID_DIGITS = 17
FIRST_SINGLE = 0x8000
MICROS_PER_S = 1_000_000

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The last second that 13 hexadecimal digits of microseconds can express, in the year 2112.
MAX_SCORE_S = 4_503_599_627.0


class _Clock:
    """Unix time in microseconds that never repeats within the process."""

    def __init__(self) -> None:
        self._last = 0

    def micros(self, count: int = 1) -> int:
        """Return the first of `count` microseconds in a row."""
        first = max(time.time_ns() // 1000, self._last + 1)
        self._last = first + count - 1
        return first


_clock = _Clock()


def new_message_id() -> str:
    """Return an id that sorts after every id that this process created before."""
    return f"{_clock.micros():013x}{random.getrandbits(15):04x}"


def new_single_id() -> str:
    """Return the id of a message that belongs to no request, and sorts as `new_message_id`."""
    return f"{_clock.micros():013x}{FIRST_SINGLE | random.getrandbits(15):04x}"


def is_single(message_id: str) -> bool:
    """Return whether a message was stored alone, by another program or by a call of the library."""
    return len(message_id) != ID_DIGITS or int(message_id[MICROS_DIGITS:], 16) >= FIRST_SINGLE


def new_message_ids(count: int) -> list[str]:
    """Return the ids of the messages of one request: one microsecond apart, in order."""
    digits = f"{random.getrandbits(15):04x}"
    first = _clock.micros(count)
    return [f"{micros:013x}{digits}" for micros in range(first, first + count)]


def answer_id(message_id: str, *, is_own: bool = True) -> str:
    """Return a new id for the answer to a message, whose random digits it repeats.

    Not if another request has stored the message (`is_own`). The id sorts after the message, even
    if the clock of the worker that stored it is ahead.
    """
    digits = message_id[MICROS_DIGITS:] if is_own else f"{random.getrandbits(15):04x}"
    micros, asked = _clock.micros(), micros_of(message_id)
    # A message that follows after one microsecond belongs to the same request.
    if micros < asked + 2:
        micros = asked + 2 + random.getrandbits(16)
    return f"{micros:013x}{digits}"


def earlier_id(message_id: str, micros: int) -> str:
    """Return the id that is this many microseconds before another one, with the same digits."""
    return f"{micros_of(message_id) - micros:013x}{message_id[MICROS_DIGITS:]}"


def micros_of(message_id: str) -> int:
    """Return the microseconds since the epoch at the start of a message id."""
    return int(message_id[:MICROS_DIGITS], 16)


def score_text(message_id: str) -> str:
    """Return the score of a message as sent to Redis; four times as fast as repr() of a float."""
    return f"{micros_of(message_id)}e-6"


def iso_time(micros: int) -> str:
    """Return microseconds since the epoch as ISO 8601 in UTC, with `+00:00`."""
    second, rest = divmod(micros, MICROS_PER_S)
    return f"{_iso_second(second)}.{rest:06d}+00:00"


# Most formatted times are only a few seconds old.
@lru_cache(maxsize=1024)
def _iso_second(second: int) -> str:
    return (EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")
