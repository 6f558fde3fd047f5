"""Asking for a stream, and looking at what became of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import ClientResponse, ClientSession

from tests.support.api import BASE
from tests.support.events import Event, read_events

ASK = {"message": "Hello", "session_id": "s", "stream": True}


async def begin(api: ClientSession, **fields: Any) -> tuple[ClientResponse, Event]:
    """Ask for a stream and read its first event."""
    response = await api.post(f"{BASE}/chat", json={**ASK, **fields})
    assert response.status == 200
    return response, await anext(read_events(response))


async def history(api: ClientSession) -> list[dict[str, Any]]:
    response = await api.get(f"{BASE}/history/s")
    messages: list[dict[str, Any]] = (await response.json())["messages"]
    return messages


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)
