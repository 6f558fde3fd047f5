"""Streams of Groq in each form that the standard for server-sent events allows."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_groq import DONE, LAST_CHUNK, STREAM_HEAD, RawGroq, Respond, chunked, event
from tests.support.streams import history

BOM = b"\xef\xbb\xbf"
ANSWER = [event("Hel"), event("lo"), event(None, "stop"), DONE]
# The JSON of the first event on two lines.
TWO_LINES = event("Hel").replace(b',"choices"', b'\ndata: ,"choices"')


def with_line_ends(end: bytes) -> list[bytes]:
    return [part.replace(b"\n", end) for part in ANSWER]


STREAMS = {
    "LF": ANSWER,
    "CRLF": with_line_ends(b"\r\n"),
    "CR": with_line_ends(b"\r"),
    "CRLF, cut": [part for whole in with_line_ends(b"\r\n") for part in whole.partition(b"\r\n")],
    "both line ends": [ANSWER[0].replace(b"\n\n", b"\n\r\n"), *ANSWER[1:]],
    "two data lines": [TWO_LINES, *ANSWER[1:]],
    "empty data": [b"data:\n\n", b"data\n\n", b"event: x\n\n", *ANSWER],
    "BOM": [BOM + ANSWER[0], *ANSWER[1:]],
    "other fields": [b": comment\nid: 1\nretry: 5\ndatabase: x\n" + ANSWER[0], *ANSWER[1:]],
    "no end of the last event": [*ANSWER[:3], b"data: [DONE]"],
}


def sends(parts: Sequence[bytes]) -> Respond:
    """Send each part in a chunk of its own."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for part in filter(None, parts):
            writer.write(chunked(part))
            await writer.drain()
            await asyncio.sleep(0.002)
        writer.write(LAST_CHUNK)

    return respond


@pytest.mark.parametrize("kind", ["chat", "openai"])
@pytest.mark.parametrize("parts", STREAMS.values(), ids=STREAMS)
async def test_a_stream_in_each_form_of_the_standard_is_stored_completely(
    serve: Serve, kind: str, parts: Sequence[bytes]
) -> None:
    path, headers = f"{BASE}/chat", {}
    body: dict[str, Any] = {"message": "Hi", "session_id": "s", "stream": True}
    if kind == "openai":
        path, headers = "/openai/v1/chat/completions", {"X-Session-Id": "s"}
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with RawGroq(sends(parts)).serve() as groq:
        api = await serve(groq_base_url=groq.url)
        async with api.post(path, json=body, headers=headers) as response:
            received = await response.read()
        assert b"event: error" not in received
        if kind == "openai":
            sent = b"".join(parts)
            assert received == (
                sent if sent.endswith((b"\n\n", b"\r\n", b"\r\r")) else sent + b"\n\n"
            )
        stored = await history(api)
    # A complete answer has no status.
    assert [(message["content"], message.get("status")) for message in stored] == [
        ("Hi", None),
        ("Hello", None),
    ]


async def test_a_relay_sends_each_event_of_a_stream_with_cr_line_ends_when_it_arrives(
    serve: Serve,
) -> None:
    is_received = asyncio.Event()
    first, *rest = with_line_ends(b"\r")

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(first))
        await is_received.wait()
        writer.write(chunked(b"".join(rest)) + LAST_CHUNK)

    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with RawGroq(respond).serve() as groq:
        api = await serve(groq_base_url=groq.url)
        async with (
            asyncio.timeout(10),
            api.post("/openai/v1/chat/completions", json=body) as response,
        ):
            assert await response.content.readexactly(len(first)) == first
            is_received.set()
            assert await response.content.read() == b"".join(rest)
