"""The chat, history and session endpoints, and the prompts that the model receives."""

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


async def test_a_chat_response_has_every_field_of_the_specification(api: ClientSession) -> None:
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


async def test_the_history_contains_both_messages_in_the_format_of_the_specification(
    api: ClientSession,
) -> None:
    answer = await chat(api, "What is Python?", session_id="user-123-abc")
    page = await history(api, "user-123-abc")

    user_message = page["messages"][0]
    assert page == {
        "session_id": "user-123-abc",
        "messages": [
            {
                "id": user_message["id"],
                "role": "user",
                "content": "What is Python?",
                "model": MODEL,
                "timestamp": user_message["timestamp"],
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
        "first_id": user_message["id"],
        "last_id": answer["message_id"],
    }
    assert user_message["timestamp"] < answer["timestamp"]


async def test_simple_chat_accepts_query_parameters(api: ClientSession, groq: MockGroq) -> None:
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


async def test_a_request_without_a_session_id_starts_a_new_session(api: ClientSession) -> None:
    first, second = await chat(api, "one"), await chat(api, "two")

    assert first["session_id"] != second["session_id"]
    assert (await history(api, first["session_id"]))["message_count"] == 2


async def test_the_prompt_of_the_second_turn_contains_the_first_turn(
    api: ClientSession, groq: MockGroq
) -> None:
    first = await chat(api, "I am Ada.", session_id="s")
    second = await chat(api, "Who am I?", session_id="s")

    assert groq.prompts[1] == [
        ("user", "I am Ada."),
        ("assistant", first["message"]),
        ("user", "Who am I?"),
    ]
    assert 'Before that you said: "I am Ada."' in second["message"]


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (0, ["three"]),
        (1, ["answer", "three"]),
        (3, ["answer", "two", "answer", "three"]),
        (1000, ["one", "answer", "two", "answer", "three"]),
    ],
)
async def test_context_is_the_number_of_earlier_messages_in_the_prompt(
    api: ClientSession, groq: MockGroq, context: int, expected: list[str]
) -> None:
    await chat(api, "one", session_id="s")
    await chat(api, "two", session_id="s")
    await chat(api, "three", session_id="s", context=context)

    sent = [text if role == "user" else "answer" for role, text in groq.prompts[-1]]
    assert sent == expected


async def test_the_context_stays_within_its_token_budget(serve: Serve, groq: MockGroq) -> None:
    # The estimate is 104 tokens for a user message and about 60 for an answer.
    api = await serve(chat_context_tokens=200, chat_context_messages=50)
    for _ in range(3):
        await chat(api, "x" * 400, session_id="s")
    await chat(api, "short", session_id="s")

    roles = [role for role, _ in groq.prompts[-1]]
    assert roles == ["user", "assistant", "user"]


async def test_only_the_given_options_are_sent_to_groq(api: ClientSession, groq: MockGroq) -> None:
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


async def test_a_truncated_answer_has_the_finish_reason_length(api: ClientSession) -> None:
    answer = await chat(api, "Hello", session_id="s", max_completion_tokens=3)

    assert (answer["message"], answer["finish_reason"]) == ("This is the ", "length")
    stored = (await history(api, "s"))["messages"][1]
    assert (stored["content"], stored["finish_reason"]) == ("This is the ", "length")


async def test_a_system_prompt_is_not_stored(api: ClientSession) -> None:
    await chat(api, "Hello", session_id="s", system_prompt="Be brief.")

    roles = [message["role"] for message in (await history(api, "s"))["messages"]]
    assert roles == ["user", "assistant"]


async def test_unusual_characters_are_stored_unchanged(api: ClientSession) -> None:
    text = 'Zoë said "hi" \\ \x00 \u2028 日本語 👩‍👩‍👧 </script> \r\n\t end '
    await chat(api, text, session_id="s")

    assert (await history(api, "s"))["messages"][0]["content"] == text


async def test_a_message_of_maximum_length_is_answered_and_stored(api: ClientSession) -> None:
    text = "ü" * 100_000
    await chat(api, text, session_id="s")

    assert (await history(api, "s"))["messages"][0]["content"] == text


async def test_the_default_model_setting_is_used_and_stored(serve: Serve) -> None:
    api = await serve(groq_default_model="qwen/qwen3-32b")
    answer = await chat(api, "Hello", session_id="s")

    assert answer["model"] == "qwen/qwen3-32b"
    models = [message["model"] for message in (await history(api, "s"))["messages"]]
    assert models == ["qwen/qwen3-32b", "qwen/qwen3-32b"]


async def test_a_lone_surrogate_in_an_answer_is_replaced(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail = "surrogate"
    answer = await chat(api, "Hello", session_id="s")

    assert answer["message"] == "half ?"
    assert answer["tokens_used"] is None
    assert (await history(api, "s"))["messages"][1]["content"] == "half ?"


async def test_deleting_a_session_removes_it_and_is_idempotent(api: ClientSession) -> None:
    await chat(api, "Hello", session_id="deleted")
    await chat(api, "Hello", session_id="other")
    cleared = {"status": "success", "message": "Chat history cleared for session deleted"}

    for _ in range(2):
        response = await api.delete(f"{BASE}/history/deleted")
        assert (response.status, await response.json()) == (200, cleared)
    assert (await history(api, "deleted"))["messages"] == []
    listed = await (await api.get(f"{BASE}/sessions")).json()
    assert listed["sessions"] == ["other"]


async def test_an_unknown_session_has_an_empty_history(api: ClientSession) -> None:
    assert await history(api, "unknown") == {
        "session_id": "unknown",
        "messages": [],
        "message_count": 0,
        "last_message_time": None,
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


async def test_a_session_response_contains_count_times_and_expiry(api: ClientSession) -> None:
    answer = await chat(api, "Hello", session_id="s")
    first = (await history(api, "s"))["messages"][0]

    session = await (await api.get(f"{BASE}/sessions/s")).json()

    expires_at = datetime.fromisoformat(session.pop("expires_at"))
    assert 86_390 <= session.pop("ttl_seconds") <= 86_400
    assert session == {
        "session_id": "s",
        "message_count": 2,
        "first_message_time": first["timestamp"],
        "last_message_time": answer["timestamp"],
    }
    answered = datetime.fromisoformat(answer["timestamp"])
    assert abs(expires_at - answered - timedelta(hours=24)) < timedelta(seconds=10)
    await assert_error(await api.get(f"{BASE}/sessions/unknown"), 404, "session_not_found")


async def test_the_history_is_available_to_running_and_new_workers(serve: Serve) -> None:
    first, second = await serve(), await serve()
    await chat(first, "Hello", session_id="s")
    third = await serve()

    assert (await history(second, "s"))["message_count"] == 2
    assert await history(third, "s") == await history(second, "s")


async def test_a_valid_request_id_of_the_client_is_returned_and_an_invalid_one_is_replaced(
    api: ClientSession,
) -> None:
    valid = await api.get("/healthz", headers={"X-Request-ID": "trace-1.2:3"})
    invalid = await api.get("/healthz", headers={"X-Request-ID": "a b" + "x" * 200})

    assert valid.headers["X-Request-ID"] == "trace-1.2:3"
    assert re.fullmatch(r"[0-9a-f]{32}", invalid.headers["X-Request-ID"])
