"""The request body of a prompt, and the parsers of Groq's answers."""

import json
from typing import Any

import pytest

from groqchat.errors import CompletionRejected, CompletionUnavailable
from groqchat.services.groq.completions import (
    MAX_EVENT_BYTES,
    MAX_TOKENS,
    MAX_TOOL_CALLS,
    Completion,
    Prompt,
    StreamParser,
    parse_completion,
    valid_tokens,
)
from groqchat.storage.messages import PromptMessage

MODEL = "requested/model"
USER: PromptMessage = {"role": "user", "content": "Hello"}


def body(choice: Any = None, **fields: Any) -> bytes:
    """Return a response body of Groq with one choice."""
    choice = {"message": {"content": "Hi"}, "finish_reason": "length"} if choice is None else choice
    return json.dumps({"model": "actual/model", "choices": [choice], **fields}).encode()


def completion(**fields: Any) -> Completion:
    """Return the completion of `body()`, with other fields."""
    expected = {"text": "Hi", "model": "actual/model", "tokens": None, "finish_reason": "length"}
    return Completion(**{**expected, **fields})


def event(data: Any) -> bytes:
    """Return an event of Groq's stream."""
    return b"data: %b\n\n" % (data if isinstance(data, bytes) else json.dumps(data).encode())


def delta(text: str | None = None, **choice: Any) -> dict[str, Any]:
    """Return a chunk of a stream."""
    return {"model": "actual/model", "choices": [{"delta": {"content": text}, **choice}]}


def tool_call_part(**part: Any) -> dict[str, Any]:
    """Return a chunk with a part of a tool call."""
    return {"choices": [{"delta": {"tool_calls": [part]}}]}


def test_the_body_of_a_prompt_contains_model_messages_options_and_additional_fields() -> None:
    prompt = Prompt(model=MODEL, messages=[USER], options={"temperature": 0})
    assert json.loads(prompt.body(stream=True)) == {
        "model": MODEL,
        "messages": [USER],
        "temperature": 0,
        "stream": True,
    }


def test_the_system_prompt_is_the_first_message() -> None:
    prompt = Prompt(model=MODEL, messages=[USER], system_prompt="")
    assert json.loads(prompt.body()) == {
        "model": MODEL,
        "messages": [{"role": "system", "content": ""}, USER],
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (body(), completion()),
        (body(usage={"total_tokens": 12}), completion(tokens=12)),
        (body(usage=None), completion()),
        (body(model=None), completion(model=MODEL)),
        (body({"message": {"content": None}}), completion(text="", finish_reason="stop")),
        (body({"message": {}}), completion(text="", finish_reason="stop")),
        (
            body({"message": {"content": "Hi"}, "finish_reason": None}),
            completion(finish_reason="stop"),
        ),
    ],
)
def test_a_response_body_is_a_completion(content: bytes, expected: Completion) -> None:
    assert expected.is_complete is True
    assert parse_completion(content, requested_model=MODEL) == expected


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"<html>", "Groq sent invalid JSON"),
        (b"\xff", "Groq sent invalid JSON"),
        (b"[]", "Groq's response is not a completion"),
        (b"{}", "Groq's response is not a completion"),
        (b'{"choices":[]}', "Groq's response is not a completion"),
        (body({"message": "Hi"}), "Groq's response is not a completion"),
        (body(usage=3), "Groq's response is not a completion"),
        (body({"message": {"content": 3}}), "Groq's completion has fields of the wrong type"),
        (body(model=3), "Groq's completion has fields of the wrong type"),
        (
            body({"message": {"content": "Hi"}, "finish_reason": 3}),
            "Groq's completion has fields of the wrong type",
        ),
    ],
)
def test_another_response_body_is_an_error(content: bytes, detail: str) -> None:
    with pytest.raises(CompletionUnavailable) as failure:
        parse_completion(content, requested_model=MODEL)
    assert failure.value.detail == detail


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, 0),
        (1, 1),
        (MAX_TOKENS, MAX_TOKENS),
        (MAX_TOKENS + 1, None),
        (-1, None),
        (True, None),
        (1.0, None),
        ("1", None),
        (None, None),
    ],
)
def test_a_token_count_is_an_integer_that_json_represents_exactly(
    tokens: object, expected: int | None
) -> None:
    assert MAX_TOKENS == 2**53
    assert valid_tokens(tokens) is expected or valid_tokens(tokens) == expected
    assert type(valid_tokens(tokens)) is type(expected)


def test_a_stream_is_parsed_to_text_model_tokens_and_finish_reason() -> None:
    parser = StreamParser(MODEL)
    assert (parser.model, parser.tokens, parser.finish_reason) == (MODEL, None, None)
    assert (parser.is_done, parser.error, parser.tool_calls) == (False, None, [])
    assert parser.feed(event(delta("")) + event(delta("Hel")) + event(delta("lo"))) == "Hello"
    assert (parser.model, parser.finish_reason) == (MODEL, None)
    assert parser.feed(event(delta(finish_reason="length"))) == ""
    assert (parser.model, parser.finish_reason) == ("actual/model", "length")
    assert parser.feed(event({"choices": [], "usage": {"total_tokens": 7}})) == ""
    assert (parser.tokens, parser.is_done) == (7, False)
    assert parser.feed(event(b"[DONE]")) == ""
    assert (parser.is_done, parser.error) == (True, None)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_chunks_may_end_anywhere(size: int) -> None:
    stream = b"".join(map(event, (delta("H\u00e9"), delta("llo"), b"[DONE]")))
    parser = StreamParser(MODEL)
    parts = [parser.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    assert "".join(parts) == "H\u00e9llo"
    assert parser.is_done


@pytest.mark.parametrize(
    ("chunk", "tokens"),
    [
        ({"x_groq": {"usage": {"total_tokens": 8}}}, 8),
        ({"x_groq": None}, None),
        ({"x_groq": {"id": "x"}}, None),
        ({"usage": {"total_tokens": 9}, "x_groq": {"usage": {"total_tokens": 8}}}, 9),
        ({"usage": {"total_tokens": -9}}, None),
    ],
)
def test_both_forms_of_token_counts_are_read(chunk: dict[str, Any], tokens: int | None) -> None:
    parser = StreamParser(MODEL)
    assert parser.feed(event({**delta("Hi"), **chunk})) == "Hi"
    assert parser.tokens == tokens


@pytest.mark.parametrize("model", [None, "", 3])
def test_without_a_model_name_in_the_stream_the_requested_model_remains(model: object) -> None:
    parser = StreamParser(MODEL)
    parser.feed(event({**delta(finish_reason="stop"), "model": model}))
    assert (parser.model, parser.finish_reason) == (MODEL, "stop")


@pytest.mark.parametrize(
    "choice", [{}, {"delta": None}, {"delta": {}}, {"delta": {"content": None}}]
)
def test_a_chunk_without_text_is_not_an_error(choice: dict[str, Any]) -> None:
    parser = StreamParser(MODEL)
    assert parser.feed(event({"choices": [choice]}) + event(delta("Hi"))) == "Hi"
    assert parser.error is None


def test_tool_calls_are_dropped_unless_they_are_wanted() -> None:
    parser = StreamParser(MODEL)
    for index in range(2 * MAX_TOOL_CALLS):
        assert parser.feed(event(tool_call_part(index=index))) == ""
    assert (parser.error, parser.tool_calls) == (None, [])


def test_a_stream_with_too_many_tool_calls_is_an_error() -> None:
    parser = StreamParser(MODEL, has_tools=True)
    for index in range(MAX_TOOL_CALLS):
        parser.feed(event(tool_call_part(index=index)))
    assert (parser.error, len(parser.tool_calls)) == (None, MAX_TOOL_CALLS)
    parser.feed(event(tool_call_part(index=MAX_TOOL_CALLS)))
    assert isinstance(parser.error, CompletionUnavailable)
    assert parser.error.detail == "more than 1024 tool calls"


def test_tool_calls_are_assembled_in_the_order_of_their_indexes() -> None:
    parser = StreamParser(MODEL, has_tools=True)
    second = {"index": 1, "id": "b", "function": {"name": "sum", "arguments": ""}}
    for part in (
        second,
        {"index": 0, "id": "a", "function": {"name": "look_up", "arguments": '{"q"'}},
        {"index": 0, "id": None, "function": {"name": None, "arguments": ":1}"}},
        {"index": 1, "function": None},
    ):
        assert parser.feed(event(tool_call_part(**part))) == ""
    # A part without an index belongs to the first call.
    parser.feed(event(tool_call_part(function={"arguments": " "})))
    assert parser.tool_calls == [
        {
            "type": "function",
            "function": {"name": "look_up", "arguments": '{"q":1} '},
            "id": "a",
        },
        {"type": "function", "function": {"name": "sum", "arguments": ""}, "id": "b"},
    ]


@pytest.mark.parametrize(
    ("data", "error", "detail"),
    [
        (b"{", CompletionUnavailable, "Groq sent invalid JSON"),
        (b"[]", CompletionUnavailable, "an event of the stream is not a chunk"),
        (b'{"choices":3}', CompletionUnavailable, "an event of the stream is not a chunk"),
        (b'{"choices":[3]}', CompletionUnavailable, "an event of the stream is not a chunk"),
        (
            b'{"error":{"message":"prompt text","code":"overloaded"}}',
            CompletionUnavailable,
            "during the stream: overloaded",
        ),
        (
            b'{"error":{"status_code":500,"code":"%b"}}' % (b"x" * 99),
            CompletionUnavailable,
            "during the stream: " + "x" * 64,
        ),
        (b'{"error":"prompt text"}', CompletionUnavailable, "during the stream: None"),
        (
            b'{"error":{"status_code":400,"code":"invalid"}}',
            CompletionRejected,
            "during the stream: invalid",
        ),
        (
            b'{"error":{"code":"json_validate_failed"}}',
            CompletionRejected,
            "during the stream: json_validate_failed",
        ),
        (
            b'{"error":{"code":"tool_use_failed"}}',
            CompletionRejected,
            "during the stream: tool_use_failed",
        ),
    ],
)
def test_an_error_ends_the_stream_after_the_text_before_it(
    data: bytes, error: type[Exception], detail: str
) -> None:
    parser = StreamParser(MODEL)
    assert parser.feed(event(delta("Hi")) + event(data) + event(delta("!"))) == "Hi"
    assert type(parser.error) is error
    assert parser.error is not None
    assert parser.error.detail == detail


def test_an_event_may_have_one_mebibyte_and_a_longer_one_is_an_error() -> None:
    parser = StreamParser(MODEL)
    assert MAX_EVENT_BYTES == 1024 * 1024
    parser.feed(b"x" * MAX_EVENT_BYTES)
    assert parser.error is None
    parser.feed(b"x")
    assert isinstance(parser.error, CompletionUnavailable)
    assert parser.error.detail == "an event exceeds 1048576 bytes"
