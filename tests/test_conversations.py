"""Sessions on the OpenAI-compatible endpoint: the prompts and the stored messages."""

import asyncio
from typing import Any

import openai
import pytest
from aiohttp import ClientSession

from groqchat.storage.messages import Message, decode_member, encode_member
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.openai_messages import answer, result, user
from tests.support.streams import history
from tests.test_openai_endpoint import CHOICE, HELLO, MODEL, SESSION, TOOL, origin

COMPLETIONS = "/openai/v1/chat/completions"


async def complete(api: ClientSession, messages: list[Any]) -> dict[str, Any]:
    """Request a completion in the session `s` and return the assistant message."""
    body = {"model": MODEL, "messages": messages}
    async with api.post(COMPLETIONS, json=body, headers=SESSION) as response:
        assert response.status == 200
        message: dict[str, Any] = (await response.json())["choices"][0]["message"]
    return message


async def test_a_long_transcript_that_is_sent_with_each_request_is_stored_once(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(chat_context_messages=4)
    transcript: list[Any] = []
    async with openai.AsyncOpenAI(
        base_url=f"{await origin(api)}/openai/v1", api_key="any"
    ) as client:
        for number in range(8):
            transcript.append(user(f"message {number}"))
            completion = await client.chat.completions.create(
                model=MODEL, messages=transcript, extra_headers=SESSION
            )
            transcript.append(completion.choices[0].message.model_dump())
    stored = await history(api)
    assert [message["content"] for message in stored] == [
        message["content"] for message in transcript
    ]
    assert len(groq.requests[-1]["messages"]) == 15


async def test_a_client_can_return_the_tool_calls_of_an_answer_in_its_transcript(
    api: ClientSession, groq: MockGroq
) -> None:
    transcript: list[Any] = [*HELLO]
    async with openai.AsyncOpenAI(
        base_url=f"{await origin(api)}/openai/v1", api_key="any"
    ) as client:
        options: dict[str, Any] = {"model": MODEL, "extra_headers": SESSION, "tools": [TOOL]}
        first = await client.chat.completions.create(
            messages=transcript, tool_choice=CHOICE, **options
        )
        message = first.choices[0].message
        assert message.tool_calls is not None
        transcript += [message.model_dump(), result(message.tool_calls[0].id)]
        await client.chat.completions.create(messages=transcript, **options)
    assert [stored["role"] for stored in await history(api)] == [
        *("user", "assistant", "tool", "assistant")
    ]
    assert [sent["role"] for sent in groq.requests[1]["messages"]] == ["user", "assistant", "tool"]


async def test_the_user_message_of_a_regenerated_answer_is_stored_once(
    api: ClientSession, groq: MockGroq
) -> None:
    transcript: list[Any] = [user("one")]
    async with openai.AsyncOpenAI(
        base_url=f"{await origin(api)}/openai/v1", api_key="any"
    ) as client:
        options: dict[str, Any] = {"model": MODEL, "extra_headers": SESSION}
        first = await client.chat.completions.create(messages=transcript, **options)
        transcript += [first.choices[0].message.model_dump(), user("two")]
        for _ in range(2):
            second = await client.chat.completions.create(messages=transcript, **options)
        transcript += [second.choices[0].message.model_dump(), user("three")]
        await client.chat.completions.create(messages=transcript, **options)
    assert [(stored["role"], stored["content"]) for stored in await history(api)] == [
        ("user", "one"),
        ("assistant", transcript[1]["content"]),
        ("user", "two"),
        ("assistant", transcript[3]["content"]),
        ("assistant", transcript[3]["content"]),
        ("user", "three"),
        ("assistant", (await history(api))[-1]["content"]),
    ]
    assert [len(body["messages"]) for body in groq.requests] == [1, 3, 3, 5]


async def test_the_messages_of_a_diverging_transcript_are_stored_once(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(chat_context_messages=4)
    transcript: list[Any] = []
    for number in range(6):
        transcript += [user(f"message {number}")]
        transcript += [await complete(api, transcript)]
    await complete(api, transcript[:-1])
    assert len(await history(api)) == 13
    assert len(groq.requests[-1]["messages"]) == 11


async def test_an_incomplete_answer_stays_stored_if_an_earlier_answer_is_regenerated(
    api: ClientSession, groq: MockGroq
) -> None:
    transcript = [user("a")]
    transcript += [await complete(api, transcript), user("b")]
    transcript += [await complete(api, transcript), user("c")]
    groq.options.fail, groq.options.fail_after_chunks = "500", 3
    body = {"model": MODEL, "messages": transcript, "stream": True}
    async with api.post(COMPLETIONS, json=body, headers=SESSION) as response:
        await response.read()
    groq.options.fail = None
    incomplete = (await history(api))[-1]
    assert incomplete["status"] == "incomplete"
    await complete(api, transcript[:3])
    assert incomplete in await history(api)


async def test_a_session_that_starts_in_the_middle_of_a_transcript_repeats_no_message(
    api: ClientSession, groq: MockGroq
) -> None:
    window = [user("2"), answer("b"), user("3")]
    last_answer = await complete(api, window)
    transcript = [user("1"), answer("a"), *window, last_answer, user("4")]
    await complete(api, transcript)
    assert groq.requests[-1]["messages"] == transcript


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "tool_call_id": ["x"], "content": "r"}, "tool_call_id"),
        ({"role": "assistant", "content": "a", "tool_calls": ["x"]}, "tool_calls"),
        ({"role": "assistant", "content": "a", "tool_calls": 5}, "tool_calls"),
        ({"role": "assistant", "content": "a", "tool_calls": [{"id": ["x"]}]}, "tool_calls"),
    ],
)
async def test_malformed_tool_messages_are_rejected_and_not_stored(
    api: ClientSession, message: dict[str, Any], param: str
) -> None:
    await complete(api, [user("before")])
    body = {"model": MODEL, "messages": [user("a"), message]}
    async with api.post(COMPLETIONS, json=body, headers=SESSION) as response:
        assert response.status == 422
        assert (await response.json())["error"]["param"] == f"messages.1.{param}"
    assert len(await history(api)) == 2
    await complete(api, [user("after")])


async def test_a_message_that_groq_rejects_is_not_stored(
    api: ClientSession, groq: MockGroq
) -> None:
    body = {"model": MODEL, "messages": [user("first")]}
    await api.post(COMPLETIONS, json=body, headers=SESSION)
    groq.options.fail = "400"
    body["messages"] = [user("rejected")]
    assert (await api.post(COMPLETIONS, json=body, headers=SESSION)).status == 400
    assert [message["content"] for message in await history(api)][::2] == ["first"]
    headers = {"X-Session-Id": "other"}
    assert (await api.post(COMPLETIONS, json=body, headers=headers)).status == 400
    sessions = await (await api.get(f"{BASE}/sessions")).json()
    assert sessions["sessions"] == ["s"]


async def test_a_session_that_is_deleted_during_a_turn_stays_deleted(
    api: ClientSession, groq: MockGroq
) -> None:
    async def delete() -> None:
        await api.delete(f"{BASE}/history/s")

    groq.before_response = delete
    body = {"model": MODEL, "messages": HELLO}
    response = await api.post(COMPLETIONS, json=body, headers=SESSION)
    assert response.status == 200
    assert response.headers["X-History-Saved"] == "false"
    assert await history(api) == []


async def test_a_repeated_request_replaces_the_incomplete_answer_of_a_failed_stream(
    api: ClientSession, groq: MockGroq
) -> None:
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    groq.options.fail = "500"
    groq.options.fail_times = 2
    for after in (1, 4):
        groq.options.fail_after_chunks = after
        await (await api.post(COMPLETIONS, json=body, headers=SESSION)).read()
    text = (await (await api.post(COMPLETIONS, json=body, headers=SESSION)).read()).decode()
    assert text.endswith("data: [DONE]\n\n")
    assert [(message["role"], message.get("status")) for message in await history(api)] == [
        ("user", None),
        ("assistant", None),
    ]
    assert [sent["messages"] for sent in groq.requests] == [HELLO] * 3


async def test_the_answers_of_concurrent_requests_are_stored(
    api: ClientSession,
) -> None:
    body = {"model": MODEL, "messages": HELLO}
    responses = await asyncio.gather(
        *(api.post(COMPLETIONS, json=body, headers={"X-Session-Id": f"s{n}"}) for n in range(20))
    )
    assert {response.headers["X-History-Saved"] for response in responses} == {"true"}


def test_a_lone_surrogate_and_a_large_integer_can_be_stored() -> None:
    message = Message(id="0" * 17, role="user", content="half \ud83d", extra={"big": 2**70})
    decoded = decode_member(encode_member(message), 0.0)
    assert decoded is not None
    assert decoded.content == "half ?"
    assert decoded.extra == {"big": pytest.approx(2**70)}
