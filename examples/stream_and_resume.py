"""Print an answer as it arrives, and continue after a lost connection.

Run `make run` first. The program breaks the connection itself after the first piece of text.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator

import aiohttp

URL = os.environ.get("GROQCHAT_URL", "http://localhost:5000") + "/api/groq-chat"
ATTEMPTS = 5
# The event `done` contains the whole answer, of at most 2,000,000 characters, on one line.
MAX_LINE_BYTES = 16 * 1024 * 1024


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, str]]:
    """Yield the events of a response: a dictionary with `id`, `event` and `data`."""
    event: dict[str, str] = {}
    async for raw in response.content:
        name, separator, value = raw.decode().rstrip("\n").partition(": ")
        if separator and name:
            event[name] = value
        elif not name and event:
            yield event
            event = {}


async def main() -> None:
    """Send a message, leave in the middle of the answer, and resume the stream."""
    async with aiohttp.ClientSession(read_bufsize=MAX_LINE_BYTES) as session:
        body = {"message": "Tell me about event streams.", "stream": True}
        async with session.post(f"{URL}/chat", json=body) as response:
            response.raise_for_status()
            turn_id = response.headers["X-Turn-ID"]
            async for event in read_events(response):
                last_id = event["id"]
                if event["event"] == "delta":
                    print(json.loads(event["data"])["text"], end="", flush=True)
                    print("[connection lost]", end="", flush=True)
                    break
        for attempt in range(ATTEMPTS):
            try:
                if await resume(session, turn_id, last_id):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(2**attempt)


async def resume(session: aiohttp.ClientSession, turn_id: str, last_id: str) -> bool:
    """Print the rest of a turn; return whether it has ended."""
    headers = {"Last-Event-ID": last_id}
    async with session.get(f"{URL}/chat/{turn_id}/events", headers=headers) as response:
        response.raise_for_status()
        async for event in read_events(response):
            data = json.loads(event["data"])
            if event["event"] == "delta":
                print(data["text"], end="", flush=True)
            elif event["event"] == "done":
                print(f"\n[{data['finish_reason']}, stored: {data['history_saved']}]")
                return True
            elif event["event"] == "error":
                raise SystemExit(data["error"]["message"])
    return False


asyncio.run(main())
