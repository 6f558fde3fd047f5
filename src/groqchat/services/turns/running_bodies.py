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


def memory_of(body: bytes) -> int:
    """Return about how many bytes of memory a JSON body needs together with its values."""
    return len(body) + VALUE_BYTES * sum(map(body.count, VALUE_MARKS))


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
