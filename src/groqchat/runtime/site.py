"""The site of a service: closing its port resets no connection."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import cast

from aiohttp import web

# A few thousand clients may connect at the same moment.
BACKLOG = 4096


class Site(web.TCPSite):
    """A TCP port with a large backlog.

    `stop` accepts all connections whose handshake the kernel has completed: it would reset them,
    and their clients may have sent a request.
    """

    __slots__ = ()

    def __init__(
        self, runner: web.BaseRunner, host: str, port: int, *, reuse_port: bool = False
    ) -> None:
        super().__init__(runner, host, port, backlog=BACKLOG, reuse_port=reuse_port or None)

    async def stop(self) -> None:
        """Close the port, and serve the connections that wait in its backlog."""
        with ExitStack() as stack:
            # The copies keep the port open after the event loop has closed it.
            listeners = [stack.enter_context(copy) for copy in self._copies()]
            await super().stop()
            waiting = [connection for copy in listeners for connection in _accept_all(copy)]
        loop = asyncio.get_running_loop()
        protocol = cast("Callable[[], asyncio.BaseProtocol]", self._runner.server)
        for connection in waiting:
            with suppress(OSError):
                await loop.connect_accepted_socket(protocol, connection)

    def _copies(self) -> Iterator[socket.socket]:
        # An asyncio.Server, or uvloop's, which is no subclass; None before the start.
        sockets: Iterable[socket.socket] = getattr(self._server, "sockets", ())
        # Without a free file descriptor, waiting connections are reset.
        with suppress(OSError):
            for listener in sockets:
                copy = listener.dup()
                copy.settimeout(0)
                yield copy


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept the waiting connections, at most as many as can wait."""
    with suppress(OSError):
        for _ in range(BACKLOG):
            connection, _ = listener.accept()
            connection.settimeout(0)
            yield connection
