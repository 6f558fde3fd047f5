"""The bodies of requests that wait or are rejected."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from aiohttp import StreamReader, web

# A rejected body is discarded in pieces, without a copy of the whole.
PIECE_BYTES = 65_536


def waiting_bytes(pipelined: Iterable[tuple[Any, Any]]) -> int:
    """Return the size of the bodies of parsed requests that wait, after the decompression."""
    return sum(getattr(payload, "total_bytes", 0) for _, payload in pipelined)


def discard_unread(payload: StreamReader) -> None:
    """Discard what the handler of a request has not read; one byte remains.

    A handler that is about to read would take an empty buffer for the end of the body. If it waits
    for more, it has read everything (RuntimeError). A malformed body has nothing more to read.
    """
    if payload.exception() is not None:
        return
    with suppress(RuntimeError):
        discarded = False
        while payload.read_nowait(PIECE_BYTES):
            discarded = True
        if discarded:
            payload.feed_data(b" ")


def discard_requests(connection: web.RequestHandler) -> None:
    """Discard the parsed requests that wait on a connection that was lost.

    The handler of the request before them may run for minutes, and would hold their bodies.
    """
    # Private in aiohttp. Without it, they are discarded at the end of this handler.
    getattr(connection, "_messages", []).clear()
