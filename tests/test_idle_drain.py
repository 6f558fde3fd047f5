"""The connections that the drain closes, as an event loop that was busy sees them."""

from dataclasses import dataclass

from groqchat.http.errors import ApiError
from groqchat.runtime.connections import ConnectionLimits, Connections
from groqchat.runtime.phases import Phase

LIMITS = ConnectionLimits(
    header_timeout_s=20,
    body_timeout_s=20,
    write_timeout_s=20,
    max_connections=10,
    max_per_address=None,
    max_body_bytes=1,
    max_buffered_bytes=1000,
)


@dataclass(eq=False)
class IdleConnection:
    """A connection that waits for its next request since a time."""

    phase: Phase = "idle"
    since_s: float = 0.0
    received_bytes: int = 0
    on_pace_s: float = 0.0
    on_pace_bytes: int = 0
    seen_sent_bytes: int = 0
    last_sent_s: float = 0.0
    searched_s: float = 0.0
    buffered_bytes: int = 0
    address: str = "127.0.0.1"
    is_dropped: bool = False

    def reject(self, error: ApiError) -> None:
        raise AssertionError(error)

    def drop(self) -> None:
        self.is_dropped = True

    def abort(self) -> None:
        self.is_dropped = True

    def has_partial_head(self) -> bool:
        return False

    def unsent_bytes(self) -> int:
        return 0

    def sent_bytes(self) -> int:
        return 0


def test_a_connection_is_closed_only_if_the_event_loop_has_looked_for_its_request() -> None:
    now_s = 100.0
    connections = Connections(LIMITS, clock=lambda: now_s)
    idle, busy = IdleConnection(), IdleConnection()
    connections.add(idle)
    connections.add(busy)
    connections.start_draining()
    connections.close_idle(1.0)
    # The loop was blocked: the request of `busy` is in the buffer of the kernel.
    now_s = 105.0
    connections.close_idle(1.0)
    assert (idle.is_dropped, busy.is_dropped) == (False, False)
    busy.phase = "running"
    connections.close_idle(1.0)
    assert (idle.is_dropped, busy.is_dropped) == (True, False)
