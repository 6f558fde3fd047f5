"""Chatting over HTTP: what the specification shows, and what the model gets to see."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import ClientSession

from groqchat.storage.message_ids import MESSAGE_ID
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq

MODEL = "openai/gpt-oss-20b"


async def chat(api: ClientSession, message: str, **fields: Any) -> dict[str, Any]:
    response = await api.post(f"{BASE}/chat", json={"message": message, **fields})
    body: dict[str, Any] = await response.json()
    assert response.status == 200, body
    return body


async def history(api: ClientSession, session_id: str, **query: Any) -> dict[str, Any]:
    response = await api.get(f"{BASE}/history/{session_id}", params=query)
    assert response.status == 200
    body: dict[str, Any] = await response.json()
    return body


async def test_an_answer_has_every_field_of_the_specification(api: ClientSession) -> None:
    answer = await chat(api, "What is Python?", model=MODEL, session_id="user-123-abc")

    message_id, timestamp = answer.pop("message_id"), answer.pop("timestamp")
    assert answer.pop("turn_id") < message_id
    assert answer == {
        "message": 'This is the mock Groq server, not a model. You said: "What is Python?". '
        "Messages received: 1.",
        "model": MODEL,
        "tokens_used": 21,
        "finish_reason": "stop",
        "session_id": "user-123-abc",
        "history_saved": True,
    }
    assert MESSAGE_ID.fullmatch(message_id)
    assert datetime.now(UTC) - datetime.fromisoformat(timestamp) < timedelta(minutes=1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", timestamp)


async def test_history_shows_both_messages_in_the_order_of_the_specification(
    api: ClientSession,
) -> None:
    answer = await chat(api, "What is Python?", session_id="user-123-abc")
    shown = await history(api, "user-123-abc")

    question = shown["messages"][0]
    assert shown == {
        "session_id": "user-123-abc",
        "messages": [
            {
                "id": question["id"],
                "role": "user",
                "content": "What is Python?",
                "model": MODEL,
                "timestamp": question["timestamp"],
            },
            {
                "id": answer["message_id"],
                "role": "assistant",
                "content": answer["message"],
                "model": MODEL,
                "timestamp": answer["timestamp"],
                "tokens": answer["tokens_used"],
                "finish_reason": "stop",
            },
        ],
        "message_count": 2,
        "last_message_time": answer["timestamp"],
        "has_more": False,
        "first_id": question["id"],
        "last_id": answer["message_id"],
    }
    assert question["timestamp"] < answer["timestamp"]


async def test_simple_chat_takes_query_parameters(api: ClientSession, groq: MockGroq) -> None:
    response = await api.post(
        f"{BASE}/simple-chat",
        params={"message": "Hello & good-bye", "session_id": "user-123", "temperature": "0.5"},
    )

    assert response.status == 200
    answer = await response.json()
    assert answer["session_id"] == "user-123"
    assert answer["history_saved"] is True
    assert groq.requests == [
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hello & good-bye"}],
            "temperature": 0.5,
        }
    ]


async def test_a_session_id_is_made_up_where_none_is_given(api: ClientSession) -> None:
    first, second = await chat(api, "one"), await chat(api, "two")

    assert first["session_id"] != second["session_id"]
    assert (await history(api, first["session_id"]))["message_count"] == 2


async def test_the_second_turn_sees_the_first(api: ClientSession, groq: MockGroq) -> None:
    first = await chat(api, "I am Ada.", session_id="s")
    second = await chat(api, "Who am I?", session_id="s")

    assert groq.prompts[1] == [
        ("user", "I am Ada."),
        ("assistant", first["message"]),
        ("user", "Who am I?"),
    ]
    assert 'Before that you said: "I am Ada."' in second["message"]


@pytest.mark.parametrize(
    ("context", "seen"),
    [
        (0, ["three"]),
        (1, ["answer", "three"]),
        (3, ["answer", "two", "answer", "three"]),
        (1000, ["one", "answer", "two", "answer", "three"]),
    ],
)
async def test_context_says_how_many_earlier_messages_the_model_sees(
    api: ClientSession, groq: MockGroq, context: int, seen: list[str]
) -> None:
    await chat(api, "one", session_id="s")
    await chat(api, "two", session_id="s")
    await chat(api, "three", session_id="s", context=context)

    shown = [text if role == "user" else "answer" for role, text in groq.prompts[-1]]
    assert shown == seen


async def test_context_stays_within_its_budget_of_tokens(serve: Serve, groq: MockGroq) -> None:
    # A question is estimated at 104 tokens, an answer at some 60.
    api = await serve(chat_context_tokens=200, chat_context_messages=50)
    for _ in range(3):
        await chat(api, "x" * 400, session_id="s")
    await chat(api, "short", session_id="s")

    roles = [role for role, _ in groq.prompts[-1]]
    assert roles == ["user", "assistant", "user"]


async def test_options_reach_the_model_and_are_left_out_where_not_given(
    api: ClientSession, groq: MockGroq
) -> None:
    await chat(
        api,
        "Hello",
        model="llama-3.1-8b-instant",
        system_prompt="Be brief.",
        temperature=0,
        top_p=0.9,
        max_completion_tokens=3,
    )
    await chat(api, "Hello")

    assert groq.requests == [
        {
            "model": "llama-3.1-8b-instant",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
            ],
            "temperature": 0,
            "top_p": 0.9,
            "max_completion_tokens": 3,
        },
        {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]},
    ]
    assert groq.headers[0]["Authorization"] == "Bearer gsk_test"


async def test_a_cut_answer_says_so_in_answer_and_history(api: ClientSession) -> None:
    answer = await chat(api, "Hello", session_id="s", max_completion_tokens=3)

    assert (answer["message"], answer["finish_reason"]) == ("This is the ", "length")
    kept = (await history(api, "s"))["messages"][1]
    assert (kept["content"], kept["finish_reason"]) == ("This is the ", "length")


async def test_a_system_prompt_is_not_kept(api: ClientSession) -> None:
    await chat(api, "Hello", session_id="s", system_prompt="Be brief.")

    roles = [message["role"] for message in (await history(api, "s"))["messages"]]
    assert roles == ["user", "assistant"]


async def test_text_of_any_kind_comes_back_as_it_was(api: ClientSession) -> None:
    text = 'Zoë said "hi" \\ \x00 \u2028 日本語 👩‍👩‍👧 </script> \r\n\t end '
    await chat(api, text, session_id="s")

    assert (await history(api, "s"))["messages"][0]["content"] == text


async def test_a_message_of_the_greatest_length_is_answered_and_kept(api: ClientSession) -> None:
    text = "ü" * 100_000
    await chat(api, text, session_id="s")

    assert (await history(api, "s"))["messages"][0]["content"] == text


async def test_another_default_model_is_used_and_kept(serve: Serve) -> None:
    api = await serve(groq_default_model="qwen/qwen3-32b")
    answer = await chat(api, "Hello", session_id="s")

    assert answer["model"] == "qwen/qwen3-32b"
    models = [message["model"] for message in (await history(api, "s"))["messages"]]
    assert models == ["qwen/qwen3-32b", "qwen/qwen3-32b"]


async def test_half_a_character_in_an_answer_does_not_lose_the_answer(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail = "surrogate"
    answer = await chat(api, "Hello", session_id="s")

    assert answer["message"] == "half ?"
    assert answer["tokens_used"] is None
    assert (await history(api, "s"))["messages"][1]["content"] == "half ?"


async def test_deleting_a_session_is_final_and_may_be_repeated(api: ClientSession) -> None:
    await chat(api, "Hello", session_id="gone")
    await chat(api, "Hello", session_id="kept")
    cleared = {"status": "success", "message": "Chat history cleared for session gone"}

    for _ in range(2):
        response = await api.delete(f"{BASE}/history/gone")
        assert (response.status, await response.json()) == (200, cleared)
    assert (await history(api, "gone"))["messages"] == []
    listed = await (await api.get(f"{BASE}/sessions")).json()
    assert listed["sessions"] == ["kept"]


async def test_an_unknown_session_has_an_empty_history(api: ClientSession) -> None:
    assert await history(api, "nobody") == {
        "session_id": "nobody",
        "messages": [],
        "message_count": 0,
        "last_message_time": None,
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


async def test_a_session_tells_its_counts_times_and_expiry(api: ClientSession) -> None:
    answer = await chat(api, "Hello", session_id="s")
    first = (await history(api, "s"))["messages"][0]

    shown = await (await api.get(f"{BASE}/sessions/s")).json()

    expires_at = datetime.fromisoformat(shown.pop("expires_at"))
    assert 86_390 <= shown.pop("ttl_seconds") <= 86_400
    assert shown == {
        "session_id": "s",
        "message_count": 2,
        "first_message_time": first["timestamp"],
        "last_message_time": answer["timestamp"],
    }
    spoken = datetime.fromisoformat(answer["timestamp"])
    assert abs(expires_at - spoken - timedelta(hours=24)) < timedelta(seconds=10)
    await assert_error(await api.get(f"{BASE}/sessions/nobody"), 404, "session_not_found")


async def test_history_is_there_for_workers_old_and_new(serve: Serve) -> None:
    first, second = await serve(), await serve()
    await chat(first, "Hello", session_id="s")
    third = await serve()

    assert (await history(second, "s"))["message_count"] == 2
    assert await history(third, "s") == await history(second, "s")


async def test_a_callers_request_id_is_kept_if_harmless(api: ClientSession) -> None:
    kept = await api.get("/healthz", headers={"X-Request-ID": "trace-1.2:3"})
    refused = await api.get("/healthz", headers={"X-Request-ID": "a b" + "x" * 200})

    assert kept.headers["X-Request-ID"] == "trace-1.2:3"
    assert re.fullmatch(r"[0-9a-f]{32}", refused.headers["X-Request-ID"])
