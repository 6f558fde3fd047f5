"""Requests for several choices: the client receives all of them, the history only the first."""

import asyncio
from typing import Any

import orjson
import pytest

from groqchat.services.groq.completions import StreamParser, parse_completion
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_groq import DONE, LAST_CHUNK, STREAM_HEAD, RawGroq, Respond, chunked, whole
from tests.test_openai_events import BODY, COMPLETIONS, SESSION


def choice(index: int | None, text: str, reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    found = {"message": message, "finish_reason": reason}
    return found if index is None else {"index": index, **found}


def delta(*deltas: tuple[int, str | None, str | None]) -> bytes:
    """Return a chunk with deltas of choices: index, text and finish reason of each."""
    choices = [
        {"index": index, "delta": {"content": text}, "finish_reason": reason}
        for index, text, reason in deltas
    ]
    return b"data: %b\n\n" % orjson.dumps({"model": "m", "choices": choices})


STREAM = b"".join(
    [
        delta((1, "B", None)),
        delta((0, "A", None)),
        delta((1, "b", None), (0, "a", None)),
        delta((1, None, "length")),
        delta((0, None, "stop")),
        delta((1, "late", None)),
        DONE,
    ]
)


def respond_with(response: bytes) -> Respond:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(response)

    return respond


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_the_history_contains_the_choice_with_index_0(
    serve: Serve, *, is_streamed: bool
) -> None:
    choices = [choice(1, "B", "length"), choice(0, "Aa", "stop")]
    body = orjson.dumps({"model": "m", "choices": choices})
    response = STREAM_HEAD + chunked(STREAM) + LAST_CHUNK if is_streamed else whole(body)
    async with RawGroq(respond_with(response)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        request = {**BODY, "n": 2, "stream": is_streamed}
        async with api.post(COMPLETIONS, json=request, headers=SESSION) as received:
            assert await received.read() == (STREAM if is_streamed else body)
        async with api.get(f"{BASE}/history/s") as received:
            messages = (await received.json())["messages"]
    assert [(each["content"], each.get("finish_reason")) for each in messages] == [
        ("Hello", None),
        ("Aa", "stop"),
    ]


@pytest.mark.parametrize("index", [None, 0, 3])
def test_the_only_choice_of_a_completion_may_have_any_index(index: int | None) -> None:
    content = orjson.dumps({"choices": [choice(index, "Hi", "stop")]})
    assert parse_completion(content, requested_model="m").text == "Hi"


def test_tool_calls_of_other_choices_are_not_mixed_in() -> None:
    parser = StreamParser("m", has_tools=True)
    for index, name in ((1, "other"), (0, "weather")):
        call = {"index": 0, "id": f"call_{name}", "function": {"name": name, "arguments": "{}"}}
        chunk = {"choices": [{"index": index, "delta": {"tool_calls": [call]}}]}
        parser.feed(b"data: %b\n\n" % orjson.dumps(chunk))
    function = {"name": "weather", "arguments": "{}"}
    assert parser.tool_calls == [{"type": "function", "id": "call_weather", "function": function}]
