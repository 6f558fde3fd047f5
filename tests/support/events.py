"""A client's parser of server-sent events."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientResponse


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `id` is None if the server sent no id."""

    id: int | None
    name: str
    data: Any


async def read_events(response: ClientResponse) -> AsyncIterator[Event]:
    """Yield the events of a response as they arrive; skip pings."""
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
    """Read a response to its end and return its remaining events."""
    return [event async for event in read_events(response)]


def text_of(events: list[Event]) -> str:
    """Return the concatenated text of the `delta` events."""
    return "".join(event.data["text"] for event in events if event.name == "delta")
