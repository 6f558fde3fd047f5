"""Reading server-sent events as a client does."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientResponse


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `id` is None where the server gave none."""

    id: int | None
    name: str
    data: Any


async def read_events(response: ClientResponse) -> AsyncIterator[Event]:
    """Yield the events of a response as they arrive, without pings."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            number = int(fields["id"]) if "id" in fields else None
            yield Event(number, fields["event"], json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}


async def all_events(response: ClientResponse) -> list[Event]:
    """Return the events of a response up to its end."""
    return [event async for event in read_events(response)]


def text_of(events: list[Event]) -> str:
    """Return what the deltas say together."""
    return "".join(event.data["text"] for event in events if event.name == "delta")
