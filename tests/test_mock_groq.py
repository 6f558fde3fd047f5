"""The stand-in for Groq's API, as the official SDK sees it."""

import time
from collections.abc import AsyncIterator
from typing import Any

import groq
import pytest
from aiohttp import ClientSession
from groq import AsyncGroq
from groq.types.chat import ChatCompletionMessageParam
from pydantic import ValidationError

from groqchat.offline.options import MockGroqOptions
from tests.support.groq import MockGroq

MODEL = "openai/gpt-oss-20b"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
TEXT = 'This is the mock Groq server, not a model. You said: "Hello". Messages received: 1.'


# The fixture `groq` has the name of the SDK's module.
@pytest.fixture(name="fake")
def _fake(groq: MockGroq) -> MockGroq:
    return groq


@pytest.fixture
async def sdk(fake: MockGroq) -> AsyncIterator[AsyncGroq]:
    """The official client, its own retries off."""
    async with AsyncGroq(api_key="gsk_any", base_url=fake.url, max_retries=0) as client:
        yield client


async def test_a_completion_has_the_form_that_the_sdk_reads(sdk: AsyncGroq) -> None:
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


async def test_the_same_question_has_the_same_answer(sdk: AsyncGroq) -> None:
    first, second = [
        await sdk.chat.completions.create(model=MODEL, messages=HELLO) for _ in range(2)
    ]
    assert (first.id, first.choices, first.usage) == (second.id, second.choices, second.usage)


async def test_a_stream_carries_the_same_text_then_usage(sdk: AsyncGroq) -> None:
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


async def test_limits_are_told_in_headers(sdk: AsyncGroq) -> None:
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
async def test_a_failure_named_in_a_header_raises_the_sdks_own_class(
    sdk: AsyncGroq, failure: str, raised: type[groq.GroqError]
) -> None:
    with pytest.raises(raised):
        await sdk.chat.completions.create(
            model=MODEL, messages=HELLO, extra_headers={"X-Offline-Fail": failure}
        )
    await sdk.chat.completions.create(model=MODEL, messages=HELLO)


async def test_a_rate_limit_says_when_to_return(sdk: AsyncGroq) -> None:
    headers = {"X-Offline-Fail": "429", "X-Offline-Retry-After-S": "7"}
    with pytest.raises(groq.RateLimitError) as raised:
        await sdk.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=headers)
    assert raised.value.response.headers["retry-after"] == "7"
    assert "org_" in str(raised.value)


async def test_a_failure_may_pass_after_some_times(sdk: AsyncGroq, fake: MockGroq) -> None:
    fake.options.fail, fake.options.fail_times = "500", 2
    for _ in range(2):
        with pytest.raises(groq.InternalServerError):
            await sdk.chat.completions.create(model=MODEL, messages=HELLO)
    await sdk.chat.completions.create(model=MODEL, messages=HELLO)


@pytest.mark.parametrize("failure", ["500", "drop"])
async def test_a_stream_may_fail_in_the_middle(sdk: AsyncGroq, failure: str) -> None:
    headers = {"X-Offline-Fail": failure, "X-Offline-Fail-After-Chunks": "4"}
    stream = await sdk.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_headers=headers
    )
    received: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            received.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - kept when it raises

    with pytest.raises(Exception, match=r".") as raised:
        await read()
    assert raised.type.__module__.split(".")[0] in {"groq", "httpx"}
    assert "".join(received) == "This is the "


async def test_latency_and_pace_are_kept(sdk: AsyncGroq) -> None:
    headers = {"X-Offline-Latency-Ms": "100", "X-Offline-Chunk-Ms": "10"}
    started = time.monotonic()
    stream = await sdk.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_headers=headers
    )
    chunks = [chunk async for chunk in stream]
    assert time.monotonic() - started >= 0.1 + 0.01 * (len(chunks) - 1)


async def test_without_a_key_nothing_is_answered(fake: MockGroq) -> None:
    async with ClientSession() as client:
        for method, path in (("POST", "chat/completions"), ("GET", "models")):
            response = await client.request(method, f"{fake.url}/openai/v1/{path}", json={})
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
async def test_what_groq_refuses_is_refused(sdk: AsyncGroq, change: dict[str, Any]) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": HELLO, **change}
    with pytest.raises(groq.BadRequestError):
        await sdk.post("/openai/v1/chat/completions", body=body, cast_to=object)


async def test_an_unknown_model_is_not_found(sdk: AsyncGroq) -> None:
    with pytest.raises(groq.NotFoundError, match="`gpt-17` does not exist"):
        await sdk.chat.completions.create(model="gpt-17", messages=HELLO)


async def test_the_answer_is_cut_at_the_number_of_tokens_asked_for(sdk: AsyncGroq) -> None:
    completion = await sdk.chat.completions.create(
        model=MODEL, messages=HELLO, max_completion_tokens=2
    )
    assert completion.choices[0].message.content == "This is "
    assert completion.choices[0].finish_reason == "length"


@pytest.mark.parametrize("options", [{"fail": "999"}, {"latency_ms": -1}, {"lateny_ms": 1}])
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MockGroqOptions.model_validate(options)
