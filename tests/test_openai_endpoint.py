"""The OpenAI-compatible endpoint, called with the SDKs of OpenAI and Groq."""

import json
from collections.abc import AsyncIterator
from typing import Any

import groq
import openai
import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.streams import history, wait_until

MODEL = "llama-3.3-70b-versatile"
SESSION = {"X-Session-Id": "s"}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"said": {"type": "string"}}},
    },
}
CHOICE: Any = {"type": "function", "function": {"name": "look_up"}}


async def origin(api: ClientSession) -> str:
    return str((await api.get("/healthz")).url.origin())


@pytest.fixture
async def openai_client(api: ClientSession) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of OpenAI's SDK with the base URL of the service."""
    url = f"{await origin(api)}/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def groq_client(api: ClientSession) -> AsyncIterator[groq.AsyncGroq]:
    """A client of Groq's SDK with the base URL of the service."""
    async with groq.AsyncGroq(base_url=await origin(api), api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(params=["groq", "openai"])
def client(request: pytest.FixtureRequest) -> Any:
    """Each of the two clients; their methods are the same."""
    return request.getfixturevalue(f"{request.param}_client")


async def test_a_completion_is_forwarded_unchanged(client: Any, groq: MockGroq) -> None:
    completion = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be brief."}, *HELLO],
        temperature=0.25,
        seed=7,
        stop=["x"],
        user="someone",
    )
    assert completion.choices[0].message.content.startswith("This is the mock Groq server")
    assert completion.model == MODEL
    assert completion.usage.total_tokens > 0
    assert groq.requests == [
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": "Be brief."}, *HELLO],
            "temperature": 0.25,
            "seed": 7,
            "stop": ["x"],
            "user": "someone",
        }
    ]


async def test_a_stream_is_forwarded(client: Any) -> None:
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.endswith("Messages received: 1.")
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_are_forwarded(client: Any, stream: bool) -> None:  # noqa: FBT001 - a parameter of the test
    body = {"model": MODEL, "messages": HELLO, "tools": [TOOL], "tool_choice": CHOICE}
    answer = await client.chat.completions.create(**body, stream=stream)
    if stream:
        deltas = [chunk.choices[0].delta async for chunk in answer]
        calls = [delta.tool_calls[0].function for delta in deltas if delta.tool_calls]
        name, arguments = calls[0].name, "".join(call.arguments for call in calls)
    else:
        (call,) = answer.choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
    assert (name, json.loads(arguments)) == ("look_up", {"said": "Hello"})


async def test_json_mode_is_forwarded(client: Any) -> None:
    completion = await client.chat.completions.create(
        model=MODEL, messages=HELLO, response_format={"type": "json_object"}
    )
    assert json.loads(completion.choices[0].message.content)["answer"]


@pytest.mark.parametrize(
    ("fail", "name"),
    [
        ("429", "RateLimitError"),
        ("400", "BadRequestError"),
        ("413", "APIStatusError"),
        ("500", "InternalServerError"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_groq_raises_the_exception_of_the_client(
    client: Any,
    groq: MockGroq,
    fail: Any,
    name: str,
    stream: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    groq.options.fail = fail
    groq.options.retry_after_s = 7
    with pytest.raises(Exception, match=fail) as raised:
        await client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    error: Any = raised.value
    assert type(error).__name__ == name
    assert error.status_code == int(fail)
    assert error.response.headers["retry-after"] == "7"
    assert error.response.headers["x-ratelimit-limit-requests"] == "14400"
    assert "org_01" not in str(error)


async def test_a_failure_in_the_middle_of_a_stream_raises_an_exception_of_the_client(
    client: Any, groq: MockGroq
) -> None:
    groq.options.fail = "500"
    groq.options.fail_after_chunks = 3
    stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with pytest.raises((openai.APIError, _groq_error())):
        async for _ in stream:
            pass


def _groq_error() -> type[Exception]:
    return groq.APIError


async def test_rate_limit_headers_are_forwarded(groq_client: Any) -> None:
    raw = await groq_client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.headers["x-ratelimit-remaining-tokens"] == "17999"
    assert raw.headers["x-request-id"]


async def test_the_models_are_listed(client: Any) -> None:
    models = await client.models.list()
    assert MODEL in [model.id for model in models.data]


async def test_without_a_session_nothing_is_stored(openai_client: Any, api: ClientSession) -> None:
    await openai_client.chat.completions.create(model=MODEL, messages=HELLO)
    sessions = await (await api.get(f"{BASE}/sessions")).json()
    assert sessions["total_sessions"] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_session_continues_with_the_next_request_at_either_endpoint(
    client: Any,
    api: ClientSession,
    groq: MockGroq,
    stream: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    options = {"model": MODEL, "extra_headers": SESSION, "stream": stream}
    for text in ("Hello", "And again?"):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": text},
        ]
        answer = await client.chat.completions.create(messages=messages, **options)
        if stream:
            async for _ in answer:
                pass
    stored = await history(api)
    assert [message["role"] for message in stored] == ["user", "assistant"] * 2
    assert [message["model"] for message in stored] == [MODEL] * 4
    assert stored[1]["finish_reason"] == "stop"
    assert stored[1]["tokens"] > 0
    assert groq.prompts[1] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", stored[1]["content"]),
        ("user", "And again?"),
    ]
    # The session continues at the other endpoint.
    await api.post(f"{BASE}/chat", json={"message": "Here too?", "session_id": "s"})
    assert [role for role, _ in groq.prompts[2]] == ["user", "assistant"] * 2 + ["user"]


async def test_a_transcript_that_is_sent_with_each_request_is_stored_once(
    openai_client: Any, api: ClientSession, groq: MockGroq
) -> None:
    transcript: list[Any] = []
    for text in ("Hello", "And again?", "And again?"):
        transcript.append({"role": "user", "content": text})
        completion = await openai_client.chat.completions.create(
            model=MODEL, messages=transcript, extra_headers=SESSION
        )
        transcript.append({"role": "assistant", "content": completion.choices[0].message.content})
    assert [(message["role"], message["content"]) for message in await history(api)] == [
        (message["role"], message["content"]) for message in transcript
    ]
    assert groq.requests[2]["messages"] == transcript[:5]


async def test_a_request_that_is_retried_after_a_failure_is_stored_once(
    openai_client: Any, api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail = "500"
    groq.options.fail_times = 1
    retrying_client = openai_client.with_options(max_retries=1)
    await retrying_client.chat.completions.create(
        model=MODEL, messages=HELLO, extra_headers=SESSION
    )
    assert [message["role"] for message in await history(api)] == ["user", "assistant"]
    assert [body["messages"] for body in groq.requests] == [HELLO, HELLO]


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_are_stored_and_their_results_are_accepted(
    openai_client: Any,
    api: ClientSession,
    groq: MockGroq,
    stream: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    options: dict[str, Any] = {"model": MODEL, "extra_headers": SESSION, "tools": [TOOL]}
    answer = await openai_client.chat.completions.create(
        messages=HELLO, tool_choice=CHOICE, stream=stream, **options
    )
    if stream:
        async for _ in answer:
            pass

    async def is_stored() -> bool:
        return len(await history(api)) == 2

    await wait_until(is_stored)
    (call,) = (await history(api))[1]["extra"]["tool_calls"]
    assert call["function"] == {"name": "look_up", "arguments": '{"said": "Hello"}'}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "found"}
    await openai_client.chat.completions.create(messages=[result], **options)
    assert groq.requests[1]["messages"] == [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        result,
    ]


async def test_content_in_parts_is_stored_and_sent_unchanged(
    openai_client: Any, api: ClientSession, groq: MockGroq
) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {}}]
    options: dict[str, Any] = {"model": MODEL, "extra_headers": SESSION}
    await openai_client.chat.completions.create(
        messages=[{"role": "user", "content": parts}], **options
    )
    await openai_client.chat.completions.create(messages=HELLO, **options)
    assert (await history(api))[0]["content"] == "What is this?"
    assert groq.requests[1]["messages"][0] == {"role": "user", "content": parts}


async def test_an_integer_over_64_bits_is_accepted(api: ClientSession, groq: MockGroq) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello", "size": 2**70}]}]
    body = {"model": MODEL, "messages": messages}
    response = await api.post("/openai/v1/chat/completions", json=body, headers=SESSION)
    assert response.status == 200
    assert groq.requests[0]["messages"][0]["content"][0]["size"] == pytest.approx(2**70)


async def test_the_answer_is_stored_completely_if_the_client_disconnects_from_the_stream(
    openai_client: Any, api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 20
    stream = await openai_client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_headers=SESSION
    )
    await anext(stream)
    await stream.close()

    async def is_stored() -> bool:
        return len(await history(api)) == 2

    await wait_until(is_stored)
    assert (await history(api))[1]["content"].endswith("Messages received: 1.")


async def test_without_redis_a_request_with_a_session_is_answered(
    serve: Serve, own_redis_server: RedisServer
) -> None:
    api = await serve(redis_url=own_redis_server.url(0), redis_timeout_s=0.5)
    own_redis_server.kill()
    body = {"model": MODEL, "messages": HELLO}
    response = await api.post("/openai/v1/chat/completions", json=body, headers=SESSION)
    assert response.status == 200


async def test_only_allowed_models_are_listed_and_accepted(serve: Serve) -> None:
    api = await serve(groq_allowed_models=(MODEL,), groq_default_model=MODEL)
    listed = await (await api.get(f"{BASE}/models")).json()
    assert [model["id"] for model in listed["models"]] == [MODEL]
    assert listed["default_model"] == MODEL
    other = "openai/gpt-oss-120b"
    response = await api.post(f"{BASE}/chat", json={"message": "Hello", "model": other})
    await assert_error(response, 422, "unknown_model", param="model")
    body = {"model": other, "messages": HELLO}
    response = await api.post("/openai/v1/chat/completions", json=body)
    await assert_error(response, 422, "unknown_model", param="model")
    assert (await api.post(f"{BASE}/chat", json={"message": "Hello"})).status == 200


@pytest.mark.parametrize(
    "messages", [None, [], "Hello", [{}], [{"role": "root"}], [{"role": ["user"]}], ["Hello"]]
)
async def test_invalid_messages_are_rejected_before_the_request_to_groq(
    api: ClientSession, groq: MockGroq, messages: Any
) -> None:
    body = {"model": MODEL, "messages": messages}
    response = await api.post("/openai/v1/chat/completions", json=body, headers=SESSION)
    assert response.status == 422
    assert (await response.json())["error"]["code"] == "invalid_field"
    assert groq.requests == []
