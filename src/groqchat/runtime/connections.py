"""The open connections of the process: their deadlines, their number and their unread requests.

One timer inspects all connections, so a request costs no timer of its own.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from typing import Protocol

from groqchat.background import background_task
from groqchat.errors import ShuttingDown
from groqchat.http.errors import ApiError, api_error_for_status, to_api_error
from groqchat.runtime.phases import CLOSED_FOR_OTHERS, WITHOUT_ERROR, WITHOUT_REQUEST, Phase
from groqchat.runtime.rejections import Rejections
from groqchat.runtime.unsent_responses import UnsentResponses

# A body of 4 MB passes over a link of 32 kbit/s: half of the speed to which mobile providers
# throttle their customers.
MIN_BODY_BYTES_PER_S = 4096
# More than a request line and the headers of any client need.
MAX_HEAD_BYTES = 131_072
MAX_INSPECTION_INTERVAL_S = 1.0
# Each deadline is checked at least this many times before it ends.
INSPECTIONS_PER_DEADLINE = 4
# A connection that delivers its request for longer than this can be closed for a new connection.
SLOW_REQUEST_S = 1.0
# An event stream ends its own connection after the write timeout, within this time.
STREAM_MARGIN_S = 2.0
# If the limit is reached, this part of it is closed, so that not every new client needs a search.
CLOSED_SHARE = 64
# A search takes milliseconds. If none of the connections could be closed, the next search waits.
SEARCH_INTERVAL_S = 0.1
# Rejected connections that wait until their client has read the error.
MAX_LINGERING = 64
# A browser or a proxy opens a few hundred; clients behind one address of a provider rarely more.
PUBLIC_ADDRESS_LIMIT = 1024
# The usual network of one customer; its owner can use every address of it.
IPV6_CUSTOMER_BITS = 64

REQUEST_TIMEOUT = replace(api_error_for_status(408), closes=True)
TOO_MANY_CONNECTIONS = ApiError(
    status=503, code="overloaded", message="Too many connections are open.", closes=True
)
TOO_MANY_OF_ADDRESS = replace(
    TOO_MANY_CONNECTIONS, message="Too many connections from this address are open."
)
SHUTTING_DOWN = replace(to_api_error(ShuttingDown()), closes=True)
TOO_MANY_BYTES = ApiError(
    status=503, code="overloaded", message="Too many request bodies arrive.", closes=True
)

log = logging.getLogger(__name__)


class Connection(Protocol):
    """A connection of a client; `since_s` is the time at which its phase began."""

    phase: Phase
    since_s: float
    received_bytes: int
    # When the body was last as fast as MIN_BODY_BYTES_PER_S, and its size at that time.
    on_pace_s: float
    on_pace_bytes: int
    # The bytes that the operating system had accepted at the last inspection, and when that number
    # last grew, or nothing was left to send.
    seen_sent_bytes: int
    last_sent_s: float
    # The beginning of the idle phase in which the connection was searched for a part of a request.
    searched_s: float

    @property
    def buffered_bytes(self) -> int:
        """The bytes of a request that is not complete."""

    def unsent_bytes(self) -> int:
        """Return the number of bytes that wait because the client reads too slowly."""

    def sent_bytes(self) -> int:
        """Return the number of bytes of responses that do not wait any more."""

    def has_partial_head(self) -> bool:
        """Return whether an idle connection has a part of a request; it cannot go on then."""

    def abort(self) -> None:
        """Close the connection and discard what the client has not read."""

    @property
    def address(self) -> str:
        """The IP address of the client."""

    def reject(self, error: ApiError) -> None:
        """Send an error and close the connection."""

    def drop(self) -> None:
        """Close the connection without a response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Deadlines and bounds; without `max_per_address`, only public addresses have a limit.

    A proxy has no limit for its address.
    """

    header_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    max_connections: int
    max_per_address: int | None
    max_buffered_bytes: int
    max_body_bytes: int
    is_proxy: Callable[[str], bool] = lambda _address: False


class Connections:
    """The open connections; closes those that exceed the limits.

    `error_headers` are the headers of errors for requests that were not parsed.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        clock: Callable[[], float] = time.monotonic,
        *,
        error_headers: Mapping[str, str] | None = None,
    ) -> None:
        self.limits = limits
        self.error_headers = error_headers or {}
        self.clock = clock
        # Bytes of requests that are not complete.
        self.buffered_bytes = 0
        self.unsent = UnsentResponses(clock)
        self.is_draining = False
        self._drain_started_s = 0.0
        # Connections that were idle at the last check of the drain.
        self._idle: set[Connection] = set()
        self.lingering = 0
        self._search_s = 0.0
        self._rejections = Rejections(clock)
        self._open: dict[Connection, str | None] = {}
        self._per_address: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._open)

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Close connections that exceed their deadlines until the context exits."""
        return background_task("check open connections", self._inspect_all)

    def add(self, connection: Connection) -> None:
        """Count a new connection; close an old one for it, or reject it."""
        key = self._counted_address(connection.address)
        is_full = len(self._open) >= self.limits.max_connections and not self._make_room()
        if is_full:
            self._reject(connection, TOO_MANY_CONNECTIONS, "MAX_CONNECTIONS")
            return
        if key is not None and self._per_address[key] >= self._address_limit:
            self._reject(connection, TOO_MANY_OF_ADDRESS, "MAX_CONNECTIONS_PER_ADDRESS")
            return
        self._open[connection] = key
        if key is not None:
            self._per_address[key] += 1

    def remove(self, connection: Connection) -> None:
        """Stop counting a connection."""
        key = self._open.pop(connection, None)
        if key is not None:
            self._per_address[key] -= 1
            if not self._per_address[key]:
                del self._per_address[key]

    def free_bytes(self) -> None:
        """Reject the largest incomplete requests until the others fit into the limit."""
        while self.buffered_bytes > self.limits.max_buffered_bytes:
            largest = max(self._open, key=lambda each: each.buffered_bytes, default=None)
            if largest is None or not largest.buffered_bytes:
                return
            before = self.buffered_bytes
            self._reject(largest, TOO_MANY_BYTES, "MAX_REQUEST_BUFFER_BYTES")
            if self.buffered_bytes >= before:
                # It is closing; the next request that arrives causes another search.
                return

    def _reject(self, connection: Connection, error: ApiError, setting: str) -> None:
        self._rejections.add(setting, connection.address)
        connection.reject(error)

    def reject_incomplete(self) -> None:
        """Reject the requests that have not arrived completely."""
        for connection in list(self._open):
            if connection.phase in {"head", "body"}:
                connection.reject(SHUTTING_DOWN)

    def start_draining(self) -> None:
        """Make each response close its connection."""
        self.is_draining = True
        self._drain_started_s = self.clock()

    def close_idle(self, idle_s: float) -> None:
        """Close the connections that have waited for `idle_s` since the drain began.

        A connection must be idle in two calls: if the event loop was busy, its request may have
        arrived without being read before the first one.
        """
        latest_s = self.clock() - idle_s
        idle = {
            connection
            for connection in self._open
            if connection.phase in WITHOUT_REQUEST
            and max(connection.since_s, self._drain_started_s) <= latest_s
        }
        for connection in idle & self._idle:
            connection.drop()
        self._idle = idle

    @property
    def _address_limit(self) -> int:
        limit = self.limits.max_per_address
        return PUBLIC_ADDRESS_LIMIT if limit is None else limit

    def _counted_address(self, address: str) -> str | None:
        """Return the address or network that is counted; None if it has no limit.

        Load generators and unknown proxies use private addresses.
        """
        if self.limits.is_proxy(address):
            return None
        try:
            parsed = ip_address(address)
        except ValueError:
            return None
        if self.limits.max_per_address is None and not parsed.is_global:
            return None
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
            return str(int(parsed) >> IPV6_CUSTOMER_BITS)
        return address

    def _make_room(self) -> bool:
        """Close the connections that have waited longest for a request; return whether any did."""
        now_s = self.clock()
        if now_s < self._search_s:
            return False
        slow_since_s = now_s - SLOW_REQUEST_S
        candidates = [
            (CLOSED_FOR_OTHERS[connection.phase], connection.since_s, number, connection)
            for number, connection in enumerate(self._open)
            if connection.phase in WITHOUT_REQUEST
            or (connection.phase in CLOSED_FOR_OTHERS and connection.since_s < slow_since_s)
        ]
        candidates += [
            (len(CLOSED_FOR_OTHERS), connection.last_sent_s, number, connection)
            for number, connection in enumerate(self._open)
            if connection.phase == "running"
            and connection.unsent_bytes()
            and connection.last_sent_s < slow_since_s
        ]
        count = max(1, self.limits.max_connections // CLOSED_SHARE)
        closed = sorted(candidates)[:count]
        for *_, connection in closed:
            _end(connection, TOO_MANY_CONNECTIONS)
            self.remove(connection)
        if not closed:
            self._search_s = now_s + SEARCH_INTERVAL_S
        return bool(closed)

    async def _inspect_all(self) -> float:
        expired = [connection for connection in self._open if self._is_expired(connection)]
        for connection in expired:
            _end(connection, REQUEST_TIMEOUT)
        if expired:
            log.info("closed %d connection(s) without a complete request", len(expired))
        stalled = [connection for connection in self._open if self._is_stalled(connection)]
        for connection in stalled:
            connection.abort()
        if stalled:
            log.info("closed %d connection(s) whose clients do not read", len(stalled))
        self._rejections.log()
        limits = self.limits
        shortest_s = min(limits.header_timeout_s, limits.body_timeout_s, limits.write_timeout_s)
        return min(MAX_INSPECTION_INTERVAL_S, shortest_s / INSPECTIONS_PER_DEADLINE)

    def _is_expired(self, connection: Connection) -> bool:
        phase = connection.phase
        if phase in {"silent", "head"}:
            timeout_s = self.limits.header_timeout_s
        elif phase == "body":
            return self._is_slow(connection)
        elif phase == "idle":
            return self._is_partial(connection)
        else:
            return False
        return self.clock() - connection.since_s >= timeout_s

    def _is_partial(self, connection: Connection) -> bool:
        """Return whether a part of a request has waited for the header timeout.

        A part that arrives behind another request leaves no trace outside of the parser, so an idle
        connection is searched for it, once.
        """
        since_s = connection.since_s
        if connection.searched_s == since_s:
            return False
        if self.clock() - since_s < self.limits.header_timeout_s:
            return False
        connection.searched_s = since_s
        if not connection.has_partial_head():
            return False
        connection.phase = "head"
        return True

    def _is_slow(self, connection: Connection) -> bool:
        """Return whether a body was slower than MIN_BODY_BYTES_PER_S for the body timeout."""
        now_s = self.clock()
        slow_s = now_s - connection.on_pace_s
        received = connection.received_bytes - connection.on_pace_bytes
        if received >= slow_s * MIN_BODY_BYTES_PER_S:
            connection.on_pace_s = now_s
            connection.on_pace_bytes = connection.received_bytes
            return False
        return slow_s >= self.limits.body_timeout_s

    def _is_stalled(self, connection: Connection) -> bool:
        """Return whether a client has read nothing of its response for the write timeout."""
        now_s = self.clock()
        sent = connection.sent_bytes()
        if sent > connection.seen_sent_bytes or not connection.unsent_bytes():
            connection.seen_sent_bytes = sent
            connection.last_sent_s = now_s
            return False
        return now_s - connection.last_sent_s >= self.limits.write_timeout_s + STREAM_MARGIN_S


def _end(connection: Connection, error: ApiError) -> None:
    """Close a connection; send an error if a request has begun and earlier responses are read."""
    if connection.unsent_bytes():
        connection.abort()
    elif connection.phase in WITHOUT_ERROR:
        connection.drop()
    else:
        connection.reject(error)
