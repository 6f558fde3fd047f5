"""The bodies of rejected requests."""

from contextlib import suppress

from aiohttp import StreamReader

# A rejected body is discarded in pieces, without a copy of the whole.
PIECE_BYTES = 65_536


def discard_unread(payload: StreamReader) -> None:
    """Discard what the handler of a request has not read; one byte remains.

    A handler that is about to read would take an empty buffer for the end of the body. If it waits
    for more, it has read everything (RuntimeError).
    """
    with suppress(RuntimeError):
        discarded = False
        while payload.read_nowait(PIECE_BYTES):
            discarded = True
        if discarded:
            payload.feed_data(b" ")
