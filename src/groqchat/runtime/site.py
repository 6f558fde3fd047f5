"""The site of a service: closing its port resets no connection."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import cast

from aiohttp import web

# A few thousand clients may connect at the same moment.
BACKLOG = 4096
# uvloop accepts one connection for each listening socket in an iteration of the event loop, which
# can take 20 ms under load. New clients would wait for seconds while open connections are served.
ACCEPTED_PER_ITERATION = 16


class Site(web.TCPSite):
    """A TCP port with a large backlog, from which a busy worker accepts many connections at once.

    `stop` accepts all connections whose handshake the kernel has completed: it would reset them,
    and their clients may have sent a request.
    """

    __slots__ = ("_acceptors",)

    def __init__(
        self, runner: web.BaseRunner, host: str, port: int, *, reuse_port: bool = False
    ) -> None:
        super().__init__(runner, host, port, backlog=BACKLOG, reuse_port=reuse_port or None)
        self._acceptors: list[asyncio.Server] = []

    async def start(self) -> None:
        """Open the port."""
        await super().start()
        loop = asyncio.get_running_loop()
        # asyncio accepts as many connections as wait.
        if isinstance(loop, asyncio.BaseEventLoop):
            return
        protocol = cast("Callable[[], asyncio.BaseProtocol]", self._runner.server)
        for _ in range(1, ACCEPTED_PER_ITERATION):
            for copy in self._copies():
                acceptor = await loop.create_server(protocol, sock=copy, backlog=BACKLOG)
                self._acceptors.append(acceptor)

    async def stop(self) -> None:
        """Close the port, and serve the connections that wait in its backlog."""
        with ExitStack() as stack:
            # The copies keep the port open after the event loop has closed it.
            listeners = [stack.enter_context(copy) for copy in self._copies()]
            for acceptor in self._acceptors:
                acceptor.close()
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
