"""Events of Groq's streams that the OpenAI-compatible endpoint does not forward unchanged."""

import asyncio
import json
from typing import Any

import pytest

from groqchat.services.groq.completions import MAX_LINE_BYTES
from tests.conftest import Serve
from tests.support.raw_groq import DONE, LAST_CHUNK, STREAM_HEAD, RawGroq, chunked, event

COMPLETIONS = "/openai/v1/chat/completions"
BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
}
SESSION = {"X-Session-Id": "s"}


def error_of(stream: bytes) -> dict[str, Any]:
    """Return the error in the last event of a stream."""
    name, data = stream.removesuffix(b"\n\n").split(b"\n\n")[-1].split(b"\n")
    assert name == b"event: error"
    error: dict[str, Any] = json.loads(data.removeprefix(b"data: "))["error"]
    return error


@pytest.mark.parametrize("headers", [{}, SESSION])
async def test_an_event_that_never_ends_ends_the_stream_with_an_error(
    serve: Serve, headers: dict[str, str]
) -> None:
    sent = 0

    async def respond(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(STREAM_HEAD + chunked(event("Hi") + b"data: "))
        while sent < 16 * MAX_LINE_BYTES:
            writer.write(chunked(b"x" * 1000))
            await writer.drain()
            sent += 1000

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        async with api.post(COMPLETIONS, json=BODY, headers=headers) as response:
            stream = await response.read()
    assert stream.startswith(event("Hi"))
    assert error_of(stream)["code"] == "completion_unavailable"
    assert len(stream) < 1000
    assert sent < 16 * MAX_LINE_BYTES


async def test_an_event_in_many_pieces_is_forwarded(serve: Serve) -> None:
    large = event("x" * 500_000)

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for begin in range(0, len(large), 20_000):
            writer.write(chunked(large[begin : begin + 20_000]))
            await writer.drain()
        writer.write(chunked(DONE) + LAST_CHUNK)

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        async with api.post(COMPLETIONS, json=BODY) as response:
            assert await response.read() == large + DONE
