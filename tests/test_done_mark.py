"""A stream of Groq ends at `[DONE]`: whatever follows is no part of the answer."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_groq import DONE, LAST_CHUNK, STREAM_HEAD, RawGroq, chunked, event
from tests.test_openai_events import BODY, COMPLETIONS, SESSION

ANSWER = event("Hi") + event(None, "stop") + DONE
LATE = event(" LATE") + event(None, "length") + DONE
SPLIT = chunked(ANSWER) + chunked(LATE)
# What Groq sends, and what a client without a session receives.
BODIES = {
    "one chunk": (chunked(ANSWER + LATE), ANSWER),
    "two chunks": (SPLIT, ANSWER),
    "carriage returns": (
        chunked((ANSWER + LATE).replace(b"\n", b"\r\n")),
        ANSWER.replace(b"\n", b"\r\n"),
    ),
    "CR": (
        chunked((ANSWER + LATE).replace(b"\n", b"\r")),
        ANSWER.replace(b"\n", b"\r"),
    ),
    "spaces": (
        chunked((ANSWER + LATE).replace(b"[DONE]", b" [DONE] ")),
        ANSWER.replace(b"[DONE]", b" [DONE] "),
    ),
}


def respond_with(body: bytes) -> Any:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + body + LAST_CHUNK)

    return respond


async def stored(api: ClientSession) -> list[tuple[str, Any]]:
    """Return text and finish reason of the messages of the session `s`."""
    async with api.get(f"{BASE}/history/s") as response:
        messages = (await response.json())["messages"]
    return [(each["content"], each.get("finish_reason")) for each in messages]


@pytest.mark.parametrize(("body", "expected"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("headers", [{}, SESSION], ids=["no session", "session"])
async def test_the_openai_endpoint_forwards_nothing_after_done(
    serve: Serve, headers: dict[str, str], body: bytes, expected: bytes
) -> None:
    async with RawGroq(respond_with(body)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        async with api.post(COMPLETIONS, json=BODY, headers=headers) as response:
            assert await response.read() == expected
        if headers:
            assert await stored(api) == [("Hello", None), ("Hi", "stop")]


@pytest.mark.parametrize("body", [body for body, _ in BODIES.values()], ids=BODIES)
async def test_a_chat_stores_nothing_after_done(serve: Serve, body: bytes) -> None:
    async with RawGroq(respond_with(body)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        message = {"message": "Hello", "session_id": "s", "stream": True}
        async with api.post(f"{BASE}/chat", json=message) as response:
            assert "LATE" not in await response.text()
        assert await stored(api) == [("Hello", None), ("Hi", "stop")]


async def test_a_line_that_only_starts_with_done_does_not_end_the_stream(serve: Serve) -> None:
    body = b": data: [DONE]\n\n" + b"data: [DONE]?\n\n" + ANSWER
    async with RawGroq(respond_with(chunked(body))).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        async with api.post(COMPLETIONS, json=BODY) as response:
            assert await response.read() == body
