"""The memory of the bodies of running requests, limited in bytes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from groqchat.errors import Overloaded

# A parsed message of a conversation takes about a kilobyte, and counts as three or four values.
VALUE_BYTES = 300
# Bodies that need less do not count: the limit of the turns is enough for them.
SMALL_BODY_BYTES = 64 * 1024
RETRY_AFTER_S = 1.0
# Each value of JSON has one of these, so that they count the values.
VALUE_MARKS = (b",", b"{", b"[")
# A text exists about five times while its request runs. If it is not ASCII, Python stores each of
# its characters in two bytes; in four bytes if one of them starts with one of these in UTF-8.
WIDE, WIDEST = 10, 20
WIDEST_MARKS = (0xF0, 0xF1, 0xF2, 0xF3, 0xF4)
# A shorter body is small, whatever it contains.
MIN_COUNTED_BYTES = SMALL_BODY_BYTES // (VALUE_BYTES + WIDEST)


def count_values(body: bytes) -> int:
    """Return the number of values in a JSON body, or more if its texts contain their marks."""
    return sum(map(body.count, VALUE_MARKS))


def memory_of(body: bytes, values: int) -> int:
    """Return about how many bytes of memory a JSON body needs together with its values.

    0 if they are too few to count.
    """
    size = VALUE_BYTES * values
    if size + len(body) * WIDEST <= SMALL_BODY_BYTES:
        return 0
    return size + len(body) * _width(body)


def _width(body: bytes) -> int:
    if (
        body.find(b"\\ud") >= 0
        or body.find(b"\\uD") >= 0
        or any(mark in body for mark in WIDEST_MARKS)
    ):
        return WIDEST
    return 1 if body.isascii() and body.find(b"\\u") < 0 else WIDE


class RunningBodies:
    """Counts the memory of large bodies until their requests have ended."""

    def __init__(self, max_bytes: float) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count the body of a request that runs in the block; raise Overloaded if it is too much.

        One body is always accepted.
        """
        if self._bytes and self._bytes + size > self._max_bytes:
            raise Overloaded(retry_after_s=RETRY_AFTER_S)
        release = self.add(size)
        try:
            yield
        finally:
            release()

    def add(self, size: int) -> Callable[[], None]:
        """Count a body until the returned function is called."""
        counted = size if size > SMALL_BODY_BYTES else 0
        self._bytes += counted

        def release() -> None:
            self._bytes -= counted

        return release
