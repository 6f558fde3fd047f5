"""A response of Groq whose chunked encoding is malformed ends its request at once."""

import asyncio
import time

import pytest

from tests.conftest import Serve
from tests.support.raw_groq import COMPLETION, STREAM_HEAD, RawGroq, Respond, chunked, event
from tests.test_groq_deadlines import PLAIN_KINDS, STREAM_KINDS, send

JSON_HEAD = STREAM_HEAD.replace(b"text/event-stream", b"application/json")
SESSION_STREAM = "openai session"
MALFORMED = {
    "invalid size": b"ZZZ\r\n",
    "negative size": b"-5\r\n",
    "no line break after the data": b"2\r\nabcd\r\n",
}
# The deadlines of the service are much longer.
AT_ONCE_S = 5


def break_off(malformed: bytes, *, is_stream: bool) -> Respond:
    """Send a part of an answer, and then a malformed chunk in a packet of its own."""
    head, part = (STREAM_HEAD, event("Hi")) if is_stream else (JSON_HEAD, COMPLETION[:-5])

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(head + chunked(part))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(malformed)
        await asyncio.Event().wait()

    return respond


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("kind", [*STREAM_KINDS, SESSION_STREAM, *PLAIN_KINDS])
async def test_a_malformed_chunk_ends_the_request_at_once(
    serve: Serve, kind: str, malformed: bytes
) -> None:
    is_stream = kind not in PLAIN_KINDS
    async with RawGroq(break_off(malformed, is_stream=is_stream)).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_max_retries=0)
        started = time.monotonic()
        status, text = await send(api, kind)

    assert time.monotonic() - started < AT_ONCE_S
    assert status == (200 if is_stream else 502)
    assert '"completion_unavailable"' in text


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_chunk_keeps_the_text_before_it(serve: Serve, malformed: bytes) -> None:
    async with RawGroq(break_off(malformed, is_stream=True)).serve() as groq:
        api = await serve(groq_base_url=groq.url)
        await send(api, SESSION_STREAM)
        async with api.get("/api/groq-chat/history/s") as response:
            messages = (await response.json())["messages"]

    assert [(each["content"], each.get("status")) for each in messages] == [
        ("Hello", None),
        ("Hi", "incomplete"),
    ]
