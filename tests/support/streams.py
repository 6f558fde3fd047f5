"""Helpers that start a stream and wait for its effects."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import ClientResponse, ClientSession

from tests.support.api import BASE
from tests.support.events import Event, read_events

STREAM_REQUEST = {"message": "Hello", "session_id": "s", "stream": True}


async def start_stream(api: ClientSession, **fields: Any) -> tuple[ClientResponse, Event]:
    """Start a streamed turn; return the response and its first event."""
    response = await api.post(f"{BASE}/chat", json={**STREAM_REQUEST, **fields})
    assert response.status == 200
    return response, await anext(read_events(response))


async def history(api: ClientSession) -> list[dict[str, Any]]:
    """Return the stored messages of the session `s`, from all pages."""
    messages: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        async with api.get(f"{BASE}/history/s", params=cursor) as response:
            page = await response.json()
        messages = [*page["messages"], *messages]
        if not page["has_more"]:
            return messages
        cursor = {"before": page["first_id"]}


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll a condition until it is true; raise TimeoutError after 20 seconds."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


# The former names of these helpers.
ASK, begin, until = STREAM_REQUEST, start_stream, wait_until
