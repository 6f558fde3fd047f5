"""Conversations of clients that speak Groq's format: what is given to the model, what is kept."""

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


async def ask(api: ClientSession, messages: list[Any]) -> dict[str, Any]:
    """Ask within the session and return the message that came back."""
    body = {"model": MODEL, "messages": messages}
    async with api.post(COMPLETIONS, json=body, headers=SESSION) as response:
        assert response.status == 200
        message: dict[str, Any] = (await response.json())["choices"][0]["message"]
    return message


async def test_a_long_conversation_sent_whole_each_time_is_kept_once(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(chat_context_messages=4)
    said: list[Any] = []
    async with openai.AsyncOpenAI(
        base_url=f"{await origin(api)}/openai/v1", api_key="any"
    ) as client:
        for number in range(8):
            said.append(user(f"question {number}"))
            completion = await client.chat.completions.create(
                model=MODEL, messages=said, extra_headers=SESSION
            )
            said.append(completion.choices[0].message.model_dump())
    shown = await history(api)
    assert [message["content"] for message in shown] == [message["content"] for message in said]
    assert len(groq.requests[-1]["messages"]) == 15


async def test_a_client_with_tools_may_send_back_what_it_got(
    api: ClientSession, groq: MockGroq
) -> None:
    said: list[Any] = [*HELLO]
    async with openai.AsyncOpenAI(
        base_url=f"{await origin(api)}/openai/v1", api_key="any"
    ) as client:
        asked: dict[str, Any] = {"model": MODEL, "extra_headers": SESSION, "tools": [TOOL]}
        first = await client.chat.completions.create(messages=said, tool_choice=CHOICE, **asked)
        message = first.choices[0].message
        assert message.tool_calls is not None
        said += [message.model_dump(), result(message.tool_calls[0].id)]
        await client.chat.completions.create(messages=said, **asked)
    assert [shown["role"] for shown in await history(api)] == [
        *("user", "assistant", "tool", "assistant")
    ]
    assert [sent["role"] for sent in groq.requests[1]["messages"]] == ["user", "assistant", "tool"]


async def test_a_question_that_is_asked_again_is_kept_once(
    api: ClientSession, groq: MockGroq
) -> None:
    said: list[Any] = [user("one")]
    async with openai.AsyncOpenAI(
        base_url=f"{await origin(api)}/openai/v1", api_key="any"
    ) as client:
        asked: dict[str, Any] = {"model": MODEL, "extra_headers": SESSION}
        first = await client.chat.completions.create(messages=said, **asked)
        said += [first.choices[0].message.model_dump(), user("two")]
        for _ in range(2):
            again = await client.chat.completions.create(messages=said, **asked)
        said += [again.choices[0].message.model_dump(), user("three")]
        await client.chat.completions.create(messages=said, **asked)
    assert [(shown["role"], shown["content"]) for shown in await history(api)] == [
        ("user", "one"),
        ("assistant", said[1]["content"]),
        ("user", "two"),
        ("assistant", said[3]["content"]),
        ("assistant", said[3]["content"]),
        ("user", "three"),
        ("assistant", (await history(api))[-1]["content"]),
    ]
    assert [len(body["messages"]) for body in groq.requests] == [1, 3, 3, 5]


async def test_a_long_conversation_that_goes_on_otherwise_is_kept_once(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(chat_context_messages=4)
    said: list[Any] = []
    for number in range(6):
        said += [user(f"question {number}")]
        said += [await ask(api, said)]
    await ask(api, said[:-1])
    assert len(await history(api)) == 13
    assert len(groq.requests[-1]["messages"]) == 11


async def test_an_answer_that_broke_off_is_kept_where_another_is_asked_for_again(
    api: ClientSession, groq: MockGroq
) -> None:
    said = [user("a")]
    said += [await ask(api, said), user("b")]
    said += [await ask(api, said), user("c")]
    groq.options.fail, groq.options.fail_after_chunks = "500", 3
    body = {"model": MODEL, "messages": said, "stream": True}
    async with api.post(COMPLETIONS, json=body, headers=SESSION) as response:
        await response.read()
    groq.options.fail = None
    broken = (await history(api))[-1]
    assert broken["status"] == "incomplete"
    await ask(api, said[:3])
    assert broken in await history(api)


async def test_a_session_that_begins_in_mid_conversation_puts_nothing_twice(
    api: ClientSession, groq: MockGroq
) -> None:
    window = [user("2"), answer("b"), user("3")]
    reply = await ask(api, window)
    whole = [user("1"), answer("a"), *window, reply, user("4")]
    await ask(api, whole)
    assert groq.requests[-1]["messages"] == whole


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "tool_call_id": ["x"], "content": "r"}, "tool_call_id"),
        ({"role": "assistant", "content": "a", "tool_calls": ["x"]}, "tool_calls"),
        ({"role": "assistant", "content": "a", "tool_calls": 5}, "tool_calls"),
        ({"role": "assistant", "content": "a", "tool_calls": [{"id": ["x"]}]}, "tool_calls"),
    ],
)
async def test_calls_that_are_none_are_refused_and_not_kept(
    api: ClientSession, message: dict[str, Any], param: str
) -> None:
    await ask(api, [user("before")])
    body = {"model": MODEL, "messages": [user("a"), message]}
    async with api.post(COMPLETIONS, json=body, headers=SESSION) as response:
        assert response.status == 422
        assert (await response.json())["error"]["param"] == f"messages.1.{param}"
    assert len(await history(api)) == 2
    await ask(api, [user("after")])


async def test_what_groq_refuses_is_not_kept(api: ClientSession, groq: MockGroq) -> None:
    body = {"model": MODEL, "messages": [user("first")]}
    await api.post(COMPLETIONS, json=body, headers=SESSION)
    groq.options.fail = "400"
    body["messages"] = [user("refused")]
    assert (await api.post(COMPLETIONS, json=body, headers=SESSION)).status == 400
    assert [message["content"] for message in await history(api)][::2] == ["first"]
    headers = {"X-Session-Id": "other"}
    assert (await api.post(COMPLETIONS, json=body, headers=headers)).status == 400
    sessions = await (await api.get(f"{BASE}/sessions")).json()
    assert sessions["sessions"] == ["s"]


async def test_a_session_deleted_in_mid_turn_stays_deleted(
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


async def test_a_stream_that_broke_off_and_is_asked_for_again_leaves_one_answer(
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


async def test_an_answer_that_redis_takes_late_is_kept_all_the_same(
    api: ClientSession,
) -> None:
    body = {"model": MODEL, "messages": HELLO}
    answers = await asyncio.gather(
        *(api.post(COMPLETIONS, json=body, headers={"X-Session-Id": f"s{n}"}) for n in range(20))
    )
    assert {response.headers["X-History-Saved"] for response in answers} == {"true"}


def test_a_message_of_any_content_can_be_stored() -> None:
    message = Message(id="0" * 17, role="user", content="half \ud83d", extra={"big": 2**70})
    decoded = decode_member(encode_member(message), 0.0)
    assert decoded is not None
    assert decoded.content == "half ?"
    assert decoded.extra == {"big": pytest.approx(2**70)}
