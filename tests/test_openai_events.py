"""Events of Groq's streams that the OpenAI-compatible endpoint does not forward unchanged."""

import asyncio
import json
from typing import Any

import pytest

from groqchat.services.groq.completions import MAX_EVENT_BYTES
from tests.conftest import Serve
from tests.support.raw_groq import DONE, LAST_CHUNK, STREAM_HEAD, RawGroq, chunked, event
from tests.support.streams import wait_until

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
        while sent < 16 * MAX_EVENT_BYTES:
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
    assert sent < 16 * MAX_EVENT_BYTES


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


GROQ_ERROR = b'event: error\ndata: {"error":{"message":"x","code":"internal"}}\n\n'


@pytest.mark.parametrize("end", [LAST_CHUNK, chunked(DONE) + LAST_CHUNK, b""])
async def test_an_error_event_of_groq_is_the_only_one_within_a_session(
    serve: Serve, end: bytes
) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event("Hi")) + chunked(GROQ_ERROR) + end)
        await writer.drain()
        writer.close()

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        async with api.post(COMPLETIONS, json=BODY, headers=SESSION) as response:
            stream = await response.read()
        async with api.get("/api/groq-chat/history/s") as response:
            messages = (await response.json())["messages"]
    assert stream.removesuffix(DONE) == event("Hi") + GROQ_ERROR
    assert [(each["content"], each.get("status")) for each in messages] == [
        ("Hello", None),
        ("Hi", "incomplete"),
    ]


@pytest.mark.parametrize("end", [LAST_CHUNK, b"", b"5\r\nab", b"ZZZ\r\n"])
async def test_an_error_event_of_groq_is_the_only_one_without_a_session(
    serve: Serve, end: bytes
) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event("Hi")) + chunked(GROQ_ERROR))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(end)
        await writer.drain()
        writer.close()

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        async with api.post(COMPLETIONS, json=BODY) as response:
            assert await response.read() == event("Hi") + GROQ_ERROR


async def test_an_answer_that_is_the_word_error_is_no_error_event(serve: Serve) -> None:
    text = event("error")

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(text) + LAST_CHUNK)

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        async with api.post(COMPLETIONS, json=BODY) as response:
            stream = await response.read()
    assert stream.startswith(text)
    assert error_of(stream)["code"] == "completion_unavailable"


@pytest.mark.parametrize("headers", [{}, SESSION])
async def test_a_stream_with_an_error_event_before_its_end_is_repeated_by_its_key(
    serve: Serve, headers: dict[str, str]
) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(GROQ_ERROR))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(chunked(DONE) + LAST_CHUNK)

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)

        async def is_repeated() -> bool:
            """Send the request; its claim is released in a moment after a failure."""
            async with api.post(
                COMPLETIONS, json=BODY, headers={**headers, "Idempotency-Key": "k"}
            ) as response:
                assert await response.read() == GROQ_ERROR + DONE
            return len(raw.bodies) > 1

        await wait_until(is_repeated)


async def test_a_stream_of_invalid_chunks_within_a_session_ends_with_an_error(serve: Serve) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event("Hi")) + chunked(b"data: 5\n\n") + LAST_CHUNK)

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        async with api.post(COMPLETIONS, json=BODY, headers=SESSION) as response:
            assert error_of(await response.read())["code"] == "completion_unavailable"
