"""The time that one turn may wait for Redis, over all its reads and writes."""

import time
from types import TracebackType

# Redis confirms a write within a few milliseconds. A turn that has waited less than this so far
# needs no limit of its own for its next operation: the deadline of the operation is enough.
NO_WAIT_S = 0.02
# A turn that has used up its budget still waits this time for its answer to be saved: Redis may be
# available again.
MIN_SAVE_WAIT_S = 0.2


class HistoryBudget:
    """The remaining time of a turn; `with budget:` measures one operation on the history."""

    __slots__ = ("_began", "_limit_s", "_waited_s")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._waited_s = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waited_s += time.monotonic() - self._began

    @property
    def left_s(self) -> float | None:
        """The time for the next operation in seconds, None if it needs no limit of its own."""
        if self._waited_s < NO_WAIT_S:
            return None
        return max(self._limit_s - self._waited_s, MIN_SAVE_WAIT_S)
