"""Conversations of clients that speak Groq's format: what is new, what fits, what is left out."""

import asyncio
from typing import Any

import openai
import pytest
from aiohttp import ClientSession

from groqchat.services.wire_messages import overlap, with_whole_calls, within_budget
from groqchat.storage.messages import Message, decode_member, encode_member
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import FakeGroq
from tests.support.streams import history
from tests.test_compatible import CHOICE, HELLO, MODEL, SESSION, TOOL, origin

COMPLETIONS = "/openai/v1/chat/completions"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str | None, *calls: str, arguments: str = '{"a":1}') -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {
                "id": call,
                "type": "function",
                "function": {"name": "look_up", "arguments": arguments},
            }
            for call in calls
        ]
    return message


def result(call: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": "found"}


async def ask(api: ClientSession, messages: list[Any]) -> dict[str, Any]:
    """Ask within the session and return the message that came back."""
    body = {"model": MODEL, "messages": messages}
    async with api.post(COMPLETIONS, json=body, headers=SESSION) as response:
        assert response.status == 200
        message: dict[str, Any] = (await response.json())["choices"][0]["message"]
    return message


@pytest.mark.parametrize(
    ("earlier", "said", "known"),
    [
        ([], [user("a")], (0, 0)),
        ([user("a"), answer("b")], [user("c")], (0, 2)),
        ([user("a"), answer("b")], [user("a")], (0, 2)),
        ([user("a"), answer("b")], [user("a"), answer("b"), user("c")], (2, 0)),
        ([user("x"), answer("y"), user("a")], [user("a")], (1, 2)),
        # The session knows less than the client: its life began, or is read, further on.
        (
            [user("c"), answer("d")],
            [user("a"), answer("b"), user("c"), answer("d"), user("e")],
            (4, 0),
        ),
        # What clients make of an answer that they send back.
        (
            [user("a"), answer("", "1")],
            [user("a"), {**answer(None, "1", arguments='{"a": 1}'), "refusal": None}, result("1")],
            (2, 0),
        ),
        (
            [user("a"), answer("b")],
            [user("a"), {**answer("b"), "reasoning": "hm"}, user("c")],
            (2, 0),
        ),
        (
            [user("a"), answer("b")],
            [user("a"), {**answer(None), "content": [{"type": "text", "text": "b\n"}]}, user("c")],
            (2, 0),
        ),
        # What the client has otherwise: asked again, stopped, edited, without the calls of tools.
        (
            [user("a"), answer("b"), user("c"), answer("d")],
            [user("a"), answer("b"), user("c")],
            (3, 0),
        ),
        (
            [user("a"), answer("b"), user("c"), answer("d"), answer("d again")],
            [user("a"), answer("b"), user("c"), answer("d again"), user("e")],
            (4, 0),
        ),
        ([user("a"), answer("bcd")], [user("a"), answer("b"), user("c")], (1, 0)),
        ([user("a"), answer("", "1")], [user("a"), answer(None, "2"), result("2")], (1, 0)),
        (
            [user("x"), answer("y"), user("a"), answer("", "1"), result("1"), answer("b")],
            [user("a"), answer("b"), user("c")],
            (2, 2),
        ),
    ],
)
def test_what_is_known_is_told_by_what_it_means(
    earlier: list[dict[str, Any]], said: list[dict[str, Any]], known: tuple[int, int]
) -> None:
    assert overlap(earlier, said) == known


def test_many_equal_messages_are_compared_at_once() -> None:
    earlier = [answer("first"), *[user("")] * 999]
    assert overlap(earlier, [user("")] * 100_000) == (999, 1)


def test_a_context_begins_with_a_question_and_ends_where_the_budget_does() -> None:
    earlier = [user("a" * 400), answer("b"), user("c"), answer("d")]

    def fitting(messages: int, tokens: int, *, needed: bool = False) -> list[dict[str, Any]]:
        return within_budget(earlier, messages=messages, tokens=tokens, needed=needed)

    assert fitting(10, 1000) == earlier
    assert fitting(10, 100) == fitting(3, 1000) == earlier[2:]
    assert fitting(1, 1000) == fitting(0, 1000) == fitting(10, 0) == []
    assert fitting(0, 0, needed=True) == earlier[2:]


@pytest.mark.parametrize(
    ("earlier", "said", "left"),
    [
        ([user("a"), answer("", "1"), result("1")], [user("b")], [0, 1, 2]),
        ([user("a"), answer("", "1")], [result("1")], [0, 1]),
        ([user("a"), answer("", "1")], [user("b")], [0]),
        ([user("a"), answer("", "1", "2"), result("1")], [user("b")], [0]),
        ([user("a"), answer("", "1", "2"), result("1")], [result("2")], [0, 1, 2]),
        ([result("1"), user("a")], [user("b")], [1]),
    ],
)
def test_calls_without_results_and_results_without_calls_are_left_out(
    earlier: list[dict[str, Any]], said: list[dict[str, Any]], left: list[int]
) -> None:
    assert with_whole_calls(earlier, said) == [earlier[at] for at in left]


def test_what_was_said_beside_a_call_is_left_in() -> None:
    earlier = [user("a"), answer("I look it up.", "1")]
    assert with_whole_calls(earlier, [user("b")]) == [user("a"), answer("I look it up.")]


async def test_a_long_conversation_sent_whole_each_time_is_kept_once(
    serve: Serve, groq: FakeGroq
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
    assert len(groq.asked[-1]["messages"]) == 15


async def test_a_client_with_tools_may_send_back_what_it_got(
    api: ClientSession, groq: FakeGroq
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
    assert [sent["role"] for sent in groq.asked[1]["messages"]] == ["user", "assistant", "tool"]


async def test_a_question_that_is_asked_again_is_kept_once(
    api: ClientSession, groq: FakeGroq
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
    assert [len(body["messages"]) for body in groq.asked] == [1, 3, 3, 5]


async def test_a_session_that_begins_in_mid_conversation_puts_nothing_twice(
    api: ClientSession, groq: FakeGroq
) -> None:
    window = [user("2"), answer("b"), user("3")]
    reply = await ask(api, window)
    whole = [user("1"), answer("a"), *window, reply, user("4")]
    await ask(api, whole)
    assert groq.asked[-1]["messages"] == whole


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


async def test_what_groq_refuses_is_not_kept(api: ClientSession, groq: FakeGroq) -> None:
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
    api: ClientSession, groq: FakeGroq
) -> None:
    async def delete() -> None:
        await api.delete(f"{BASE}/history/s")

    groq.before = delete
    body = {"model": MODEL, "messages": HELLO}
    response = await api.post(COMPLETIONS, json=body, headers=SESSION)
    assert response.status == 200
    assert response.headers["X-History-Saved"] == "false"
    assert await history(api) == []


async def test_a_stream_that_broke_off_and_is_asked_for_again_leaves_one_answer(
    api: ClientSession, groq: FakeGroq
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
    assert [sent["messages"] for sent in groq.asked] == [HELLO] * 3


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
