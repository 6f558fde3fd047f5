"""Discarding the bodies of rejected requests."""

import asyncio
from unittest.mock import Mock

import pytest
from aiohttp import StreamReader

from groqchat.runtime.bodies import PIECE_BYTES, discard_unread


@pytest.fixture
async def payload() -> StreamReader:
    return StreamReader(Mock(), limit=PIECE_BYTES, loop=asyncio.get_running_loop())


async def test_a_handler_receives_the_error_instead_of_an_early_end(payload: StreamReader) -> None:
    waiting = asyncio.create_task(payload.readany())
    await asyncio.sleep(0)
    # The handler runs only after these calls.
    payload.feed_data(b"x" * 3 * PIECE_BYTES)
    discard_unread(payload)
    payload.set_exception(ValueError("rejected"))
    payload.feed_eof()
    assert await waiting == b" "
    with pytest.raises(ValueError, match="rejected"):
        await payload.readany()


async def test_nothing_of_a_malformed_body_is_discarded(payload: StreamReader) -> None:
    payload.feed_data(b"x")
    payload.set_exception(ValueError("malformed"))
    discard_unread(payload)
    assert str(payload.exception()) == "malformed"


async def test_nothing_is_discarded_while_the_handler_waits(payload: StreamReader) -> None:
    waiting = asyncio.create_task(payload.readany())
    await asyncio.sleep(0)
    discard_unread(payload)
    payload.feed_data(b"x")
    assert await waiting == b"x"
