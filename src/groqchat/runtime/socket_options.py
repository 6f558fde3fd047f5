"""Options of the sockets of clients."""

import asyncio
import socket
from contextlib import suppress

# Without a limit, Linux buffers up to 4 MB for each client that does not read; a thousand of them
# use up the memory for TCP of the whole machine. This is enough for the fastest clients.
MAX_UNSENT_IN_KERNEL_BYTES = 131_072


def limit_kernel_buffer(transport: asyncio.BaseTransport) -> None:
    """Make the kernel refuse bytes while the client reads too slowly."""
    _set_tcp_option(transport, "TCP_NOTSENT_LOWAT", MAX_UNSENT_IN_KERNEL_BYTES)


def send_with_end(transport: asyncio.BaseTransport) -> None:
    """Make the kernel send the last bytes in one packet with the end of the connection.

    It waits for more bytes or the end for 200 ms. Only Linux has this option.
    """
    _set_tcp_option(transport, "TCP_CORK", 1)


def _set_tcp_option(transport: asyncio.BaseTransport, name: str, value: int) -> None:
    option = getattr(socket, name, None)
    if option is not None:
        with suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, value)
