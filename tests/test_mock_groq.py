"""The mock Groq server, called with Groq's SDK."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import groq
import pytest
from aiohttp import ClientSession
from groq import AsyncGroq
from groq.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import ValidationError

from groqchat.offline.options import MockGroqOptions
from tests.support.groq import MockGroq

MODEL = "openai/gpt-oss-20b"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
TEXT = 'This is the mock Groq server, not a model. You said: "Hello". Messages received: 1.'


# The fixture `groq` and the module of the SDK have the same name.
@pytest.fixture(name="mock")
def _mock(groq: MockGroq) -> MockGroq:
    return groq


@pytest.fixture
async def sdk(mock: MockGroq) -> AsyncIterator[AsyncGroq]:
    """A client of Groq's SDK, without retries."""
    async with AsyncGroq(api_key="gsk_any", base_url=mock.url, max_retries=0) as client:
        yield client


async def test_the_sdk_parses_a_completion(sdk: AsyncGroq) -> None:
    completion = await sdk.chat.completions.create(model=MODEL, messages=HELLO)

    assert completion.object == "chat.completion"
    assert completion.model == MODEL
    assert completion.choices[0].message.content == TEXT
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert (
        completion.usage.prompt_tokens,
        completion.usage.completion_tokens,
        completion.usage.total_tokens,
    ) == (2, 15, 17)
    assert completion.x_groq is not None
    assert completion.x_groq.id.startswith("req_")


async def test_equal_messages_receive_equal_answers(sdk: AsyncGroq) -> None:
    first, second = [
        await sdk.chat.completions.create(model=MODEL, messages=HELLO) for _ in range(2)
    ]
    assert (first.id, first.choices, first.usage) == (second.id, second.choices, second.usage)


async def test_a_stream_contains_the_same_text_and_then_the_usage(sdk: AsyncGroq) -> None:
    stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert chunks[-1].x_groq is not None
    assert chunks[-1].x_groq.usage is not None
    assert chunks[-1].x_groq.usage.total_tokens == 17


async def test_the_models_are_listed(sdk: AsyncGroq) -> None:
    listed = await sdk.models.list()
    assert MODEL in [model.id for model in listed.data]


async def test_rate_limits_are_in_the_headers(sdk: AsyncGroq) -> None:
    response = await sdk.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert response.headers["x-ratelimit-limit-requests"] == "14400"
    assert response.headers["x-ratelimit-remaining-tokens"] == "17999"


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        ("400", groq.BadRequestError),
        ("401", groq.AuthenticationError),
        ("403", groq.PermissionDeniedError),
        ("404", groq.NotFoundError),
        ("422", groq.UnprocessableEntityError),
        ("429", groq.RateLimitError),
        ("498", groq.APIStatusError),
        ("500", groq.InternalServerError),
        ("drop", groq.APIConnectionError),
    ],
)
async def test_a_failure_set_by_a_header_raises_the_exception_of_the_sdk(
    sdk: AsyncGroq, failure: str, raised: type[groq.GroqError]
) -> None:
    with pytest.raises(raised):
        await sdk.chat.completions.create(
            model=MODEL, messages=HELLO, extra_headers={"X-Offline-Fail": failure}
        )
    await sdk.chat.completions.create(model=MODEL, messages=HELLO)


async def test_a_rate_limit_error_has_a_retry_after_header(sdk: AsyncGroq) -> None:
    headers = {"X-Offline-Fail": "429", "X-Offline-Retry-After-S": "7"}
    with pytest.raises(groq.RateLimitError) as raised:
        await sdk.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=headers)
    assert raised.value.response.headers["retry-after"] == "7"
    assert "org_" in str(raised.value)


async def test_fail_times_limits_the_number_of_failures(sdk: AsyncGroq, mock: MockGroq) -> None:
    mock.options.fail, mock.options.fail_times = "500", 2
    for _ in range(2):
        with pytest.raises(groq.InternalServerError):
            await sdk.chat.completions.create(model=MODEL, messages=HELLO)
    await sdk.chat.completions.create(model=MODEL, messages=HELLO)


@pytest.mark.parametrize("failure", ["500", "drop"])
async def test_fail_after_chunks_fails_in_the_middle_of_a_stream(
    sdk: AsyncGroq, failure: str
) -> None:
    headers = {"X-Offline-Fail": failure, "X-Offline-Fail-After-Chunks": "4"}
    stream = await sdk.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_headers=headers
    )
    received: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            received.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - the list is needed after an exception

    with pytest.raises(Exception, match=r".") as raised:
        await read()
    assert raised.type.__module__.split(".")[0] in {"groq", "httpx"}
    assert "".join(received) == "This is the "


async def test_latency_ms_and_chunk_ms_delay_a_stream(sdk: AsyncGroq) -> None:
    headers = {"X-Offline-Latency-Ms": "100", "X-Offline-Chunk-Ms": "10"}
    started = time.monotonic()
    stream = await sdk.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_headers=headers
    )
    chunks = [chunk async for chunk in stream]
    assert time.monotonic() - started >= 0.1 + 0.01 * (len(chunks) - 1)


async def test_a_request_without_an_api_key_is_a_401(mock: MockGroq) -> None:
    async with ClientSession() as client:
        for method, path in (("POST", "chat/completions"), ("GET", "models")):
            response = await client.request(method, f"{mock.url}/openai/v1/{path}", json={})
            assert response.status == 401
            assert (await response.json())["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "change",
    [
        {"messages": []},
        {"messages": [{"role": "martian", "content": "x"}]},
        {"temperature": 3},
        {"n": 2},
        {"max_completion_tokens": 0},
    ],
)
async def test_a_request_that_groq_would_reject_is_rejected(
    sdk: AsyncGroq, change: dict[str, Any]
) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": HELLO, **change}
    with pytest.raises(groq.BadRequestError):
        await sdk.post("/openai/v1/chat/completions", body=body, cast_to=object)


async def test_an_unknown_model_is_a_404(sdk: AsyncGroq) -> None:
    with pytest.raises(groq.NotFoundError, match="`gpt-17` does not exist"):
        await sdk.chat.completions.create(model="gpt-17", messages=HELLO)


async def test_max_completion_tokens_truncates_the_answer(sdk: AsyncGroq) -> None:
    completion = await sdk.chat.completions.create(
        model=MODEL, messages=HELLO, max_completion_tokens=2
    )
    assert completion.choices[0].message.content == "This is "
    assert completion.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("mock", "This is the "),
        (["Hello", " mock"], "This is the"),
        ("s is the m", "Thi"),
        ([], TEXT),
        ("", TEXT),
        (None, TEXT),
        ("absent", TEXT),
    ],
)
async def test_an_answer_ends_before_a_stop_text(sdk: AsyncGroq, stop: Any, expected: str) -> None:
    completion = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stop=stop)
    assert completion.choices[0].message.content == expected
    assert completion.choices[0].finish_reason == "stop"
    stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, stop=stop, stream=True)
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(texts) == expected


@pytest.mark.parametrize("options", [{"fail": "999"}, {"latency_ms": -1}, {"lateny_ms": 1}])
def test_an_invalid_option_is_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MockGroqOptions.model_validate(options)


TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "time")
]


async def called_tool(
    sdk: AsyncGroq, choice: Any, *later: ChatCompletionMessageParam
) -> str | None:
    """Return the name of the tool that the answer calls, None if it calls none."""
    question: ChatCompletionMessageParam = {"role": "user", "content": "What is the time?"}
    completion = await sdk.chat.completions.create(
        model=MODEL, messages=[question, *later], tools=TOOLS, tool_choice=choice
    )
    calls = completion.choices[0].message.tool_calls
    if not calls:
        return None
    assert json.loads(calls[0].function.arguments) == {"city": "What is the time?"}
    assert completion.choices[0].finish_reason == "tool_calls"
    return calls[0].function.name


def call_of(name: str) -> ChatCompletionMessageParam:
    return {
        "role": "assistant",
        "tool_calls": [
            {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}
        ],
    }


async def test_the_tool_choice_decides_which_tool_is_called(sdk: AsyncGroq) -> None:
    named = {"type": "function", "function": {"name": "time"}}
    assert await called_tool(sdk, named) == "time"
    assert await called_tool(sdk, "none") is None
    assert await called_tool(sdk, "required") == "weather"
    assert await called_tool(sdk, "required", call_of("weather")) == "time"
    assert await called_tool(sdk, "required", call_of("weather"), call_of("time")) == "time"
    # With `auto`, a tool that the last user message names, once.
    assert await called_tool(sdk, "auto") == "time"
    assert await called_tool(sdk, "auto", call_of("time")) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        {"response_format": {"type": "xml"}},
        {"tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "unknown"}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"$ref": "#/$defs/Missing"}},
            }
        },
    ],
)
async def test_an_invalid_response_format_or_tool_choice_is_rejected(
    sdk: AsyncGroq, fields: dict[str, Any]
) -> None:
    with pytest.raises(groq.BadRequestError):
        await sdk.chat.completions.create(model=MODEL, messages=HELLO, **fields)


async def test_a_model_and_an_unknown_path_answer_as_groq_does(
    sdk: AsyncGroq, mock: MockGroq
) -> None:
    assert (await sdk.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(groq.NotFoundError) as unknown:
        await sdk.models.retrieve("no/such-model")
    assert "model_not_found" in str(unknown.value)
    async with ClientSession() as client, client.get(f"{mock.url}/openai/v1/nothing") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "unknown_url"
