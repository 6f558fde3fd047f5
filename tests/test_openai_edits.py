"""Transcripts whose last messages were edited after a failure, and are repeated."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession
from msgspec import structs
from redis.asyncio import Redis

from groqchat.storage.message_ids import earlier_id
from tests.support.groq import MockGroq
from tests.support.openai_messages import answer, result
from tests.support.store import new_message, new_store
from tests.support.streams import history, wait_until
from tests.test_openai_idempotency import send, succeeds
from tests.test_openai_rejections import api, contents, send_keyed, until_asked, users
from tests.test_unanswered_messages import REJECTED

__all__ = ["api"]


async def fail(api: ClientSession, *messages: dict[str, str]) -> None:
    assert (await send(api, session=True, messages=[*messages], headers={}))[0] == 503


@pytest.fixture
async def exchange(api: ClientSession) -> list[dict[str, str]]:
    """The messages of a session with one answer."""
    assert await succeeds(api, session=True, messages=users("P"), headers={})
    return [*users("P"), {"role": "assistant", "content": (await history(api))[1]["content"]}]


async def test_an_edited_message_that_is_repeated_is_stored_once(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]]
) -> None:
    groq.options.fail = "503"
    await fail(api, *exchange, *users("Q"))
    for _ in range(3):
        await fail(api, *exchange, *users("edited"))
    groq.options.fail = None
    assert await succeeds(api, session=True, messages=[*exchange, *users("edited")], headers={})
    assert await contents(api) == ["P", "answer", "Q", "edited", "answer"]


async def test_a_message_before_an_edited_one_is_stored_once(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]]
) -> None:
    groq.options.fail = "503"
    await fail(api, *exchange, *users("Q", "R"))
    groq.options.fail = None
    transcript = [*exchange, *users("Q", "edited")]
    assert await succeeds(api, session=True, messages=transcript, headers={})
    assert await contents(api) == ["P", "answer", "Q", "R", "edited", "answer"]


async def test_a_rejected_edit_retains_an_equal_message_of_another_request(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]]
) -> None:
    groq.options.fail = "503"
    await fail(api, *exchange, *users("P"))
    groq.options.fail = "400"
    await send(api, session=True, messages=[*exchange, *users("edited")], headers={})
    assert await contents(api) == ["P", "answer", "P"]


@pytest.mark.parametrize("path", ["openai", "chat"])
async def test_a_rejected_repetition_removes_its_message_before_the_answer_of_another_request(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    release = groq.hold()
    sending = send(api, session=True, messages=users("other"), headers={})
    running = asyncio.create_task(sending)
    await until_asked(groq, 1)
    groq.before_response, groq.options.fail = None, "503"

    assert await send_keyed(api, path) == 503
    groq.options.fail = None
    release.set()
    assert (await running)[0] == 200
    assert await contents(api) == ["other", "Q", "answer"]
    groq.options.fail = "400"

    async def is_rejected() -> bool:
        return await send_keyed(api, path) == 400

    await wait_until(is_rejected)
    assert await contents(api) == ["other", "answer"]


@pytest.mark.parametrize("later", [False, True])
async def test_a_transcript_retains_recent_messages_near_an_answer_of_another_request(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]], *, later: bool
) -> None:
    releases = [groq.hold()]
    texts = ["other", "Q"] if later else ["Q", "other"]
    running = []
    for count, text in enumerate(texts, 2):
        messages = [*exchange, *users("Q")] if text == "Q" else users("other")
        request = send(api, session=True, messages=messages, headers={})
        running.append(asyncio.create_task(request))
        await until_asked(groq, count)
        if text == texts[0]:
            releases.append(groq.hold())
    own, others = (1, 0) if later else (0, 1)
    groq.before_response, groq.rejected = None, {2 + own}
    releases[others].set()
    assert (await running[others])[0] == 200
    transcript = [*exchange, *users("Q", "S")]
    assert await succeeds(api, session=True, messages=transcript, headers={})
    releases[own].set()
    assert (await running[own])[0] == 400
    assert await contents(api) == ["P", "answer", *texts, "answer", "S", "answer"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_regenerated_answer_does_not_depend_on_the_messages_of_another_request(
    api: ClientSession, groq: MockGroq, *, stream: bool
) -> None:
    assert await succeeds(api, session=True, messages=users("P"), headers={})
    answer = {"role": "assistant", "content": (await history(api))[1]["content"]}
    transcript = [*users("P"), answer, *users("Q")]
    assert await succeeds(api, session=True, messages=transcript, headers={})
    releases = [groq.hold()]
    other = asyncio.create_task(send(api, session=True, messages=users("X"), headers={}))
    await until_asked(groq, 3)
    releases.append(groq.hold())
    sending = succeeds(api, session=True, stream=stream, messages=transcript, headers={})
    regenerating = asyncio.create_task(sending)
    await until_asked(groq, 4)
    groq.rejected = {3}
    releases[0].set()
    assert (await other)[0] == 400
    releases[1].set()
    assert await regenerating
    # With a message of another client after it, Q may be a new message with an equal text.
    assert await contents(api) == ["P", "answer", "Q", "answer", "Q", "answer"]


async def test_a_repeated_request_with_many_messages_blocks_nobody_for_long(
    api: ClientSession, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = users(*map(str, range(2000)))
    groq.options.fail = "503"
    assert not await succeeds(api, session=True, messages=messages)
    groq.options.fail = None
    compared = 0

    class CountedId(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    monkeypatch.setattr(
        "groqchat.services.openai.conversations.earlier_id",
        lambda message_id, micros: CountedId(earlier_id(message_id, micros)),
    )
    await wait_until(lambda: succeeds(api, session=True, messages=messages))
    # A search in a list for each message would compare millions.
    assert compared < 20 * len(messages)


async def test_tool_results_follow_their_call_although_another_turn_was_stored_since(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    store = new_store(redis)
    await store.save_messages(
        "s",
        new_message("P"),
        structs.replace(new_message("", "assistant"), extra={"tool_calls": [call]}),
        new_message("O"),
        new_message("a", "assistant"),
    )
    result = {"role": "tool", "tool_call_id": "1", "content": "r"}
    assert await succeeds(api, session=True, messages=[result], headers={})
    roles = [each["role"] for each in groq.requests[-1]["messages"]]
    assert roles == ["user", "user", "assistant", "assistant", "tool"]
    assert groq.requests[-1]["messages"][3]["tool_calls"] == [call]


async def test_a_rejected_request_after_an_incomplete_answer_removes_only_its_own_message(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail, groq.options.fail_after_chunks = "drop", 3
    assert not await succeeds(api, session=True, stream=True, messages=users("Q"), headers={})
    groq.options.fail = groq.options.fail_after_chunks = None
    answer = {"role": "assistant", "content": (await history(api))[1]["content"]}
    groq.options.fail = "400"
    transcript = [*users("Q"), answer, *users("N")]
    assert (await send(api, session=True, messages=transcript, headers={}))[0] == 400
    assert await contents(api) == ["Q", "answer"]


async def test_a_rejected_retry_retains_the_answered_message_of_another_request(
    api: ClientSession, groq: MockGroq
) -> None:
    releases = [groq.hold()]
    first = asyncio.create_task(send(api, session=True, messages=users("Q"), headers={}))
    await until_asked(groq, 1)
    releases.append(groq.hold())
    other = asyncio.create_task(send(api, session=True, messages=users("Z"), headers={}))
    await until_asked(groq, 2)
    groq.before_response, groq.options.fail = None, "503"
    keyed: dict[str, Any] = {"session": True, "messages": users("Q", "R")}
    assert (await send(api, **keyed))[0] == 503
    groq.options.fail, groq.rejected_texts = None, {"Z"}
    releases[1].set()
    assert (await other)[0] == 400
    releases[0].set()
    assert (await first)[0] == 200
    assert await contents(api) == ["Q", "Q", "R", "answer"]
    groq.options.fail = "400"

    async def is_rejected() -> bool:
        return (await send(api, **keyed))[0] == 400

    await wait_until(is_rejected)
    assert await contents(api) == ["Q", "answer"]


async def test_a_repeated_transcript_is_stored_although_its_first_request_is_rejected(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]]
) -> None:
    requests = [users("X"), [*exchange, *users("M")], users("Y"), [*exchange, *users("M")]]
    releases, running = [], []
    for count, messages in enumerate(requests[:3], 2):
        releases.append(groq.hold())
        request = send(api, session=True, messages=messages, headers={})
        running.append(asyncio.create_task(request))
        await until_asked(groq, count)
    releases[0].set()
    assert (await running[0])[0] == 200
    releases[2].set()
    assert (await running[2])[0] == 200
    releases.append(groq.hold())
    sending = succeeds(api, session=True, messages=requests[3], headers={})
    repeated = asyncio.create_task(sending)
    await until_asked(groq, 5)
    groq.rejected = {3}
    releases[1].set()
    assert (await running[1])[0] == 400
    releases[3].set()
    assert await repeated
    stored = await contents(api)
    assert stored == ["P", "answer", "X", "M", "Y", "answer", "answer", "answer"]


async def test_a_rejected_retry_of_a_whole_conversation_removes_all_of_it(
    api: ClientSession, groq: MockGroq
) -> None:
    answer = {"role": "assistant", "content": "A"}
    keyed: dict[str, Any] = {"session": True, "messages": [*users("Q"), answer, *users("N")]}
    groq.options.fail = "503"
    assert (await send(api, **keyed))[0] == 503
    groq.options.fail = "400"

    async def is_rejected() -> bool:
        return (await send(api, **keyed))[0] == 400

    await wait_until(is_rejected)
    assert await contents(api) == []


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}])
async def test_the_answer_to_an_edited_message_can_be_regenerated(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]], headers: dict[str, str]
) -> None:
    for number, text in enumerate(["Q", "edited", "edited"]):
        own = {name: f"{value}-{number}" for name, value in headers.items()}
        transcript = [*exchange, *users(text)]
        assert await succeeds(api, session=True, messages=transcript, headers=own)
        assert groq.prompts[-1] == [(each["role"], each["content"]) for each in transcript]
    assert await contents(api) == ["P", "answer", "Q", "answer", "edited", "answer", "answer"]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}])
async def test_a_rejected_edit_is_removed(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]], headers: dict[str, str]
) -> None:
    transcript = [*exchange, *users("Q")]
    assert await succeeds(api, session=True, messages=transcript, headers={})
    groq.options.fail = "400"
    edited = [*exchange, *users("edited", "and more")]
    assert (await send(api, session=True, messages=edited, headers=headers))[0] == 400
    assert await contents(api) == ["P", "answer", "Q", "answer"]


async def test_an_agent_is_not_stopped_by_a_rejected_message_between_its_calls(
    api: ClientSession, groq: MockGroq
) -> None:
    first, second = ({**answer("", each), "content": None} for each in ("1", "2"))
    transcript = [*users("u1"), first, result("1")]
    assert (await send(api, session=True, messages=transcript, headers={}))[0] == 200
    groq.options.fail = "503"
    await fail(api, *users(REJECTED))
    groq.options.fail = None
    assert (await send(api, session=True, messages=[second, result("2")], headers={}))[0] == 200
    groq.rejected_texts = {REJECTED}
    assert (await send(api, session=True, messages=[result("2")], headers={}))[0] == 200
    assert REJECTED not in [text for _, text in groq.prompts[-1]]
