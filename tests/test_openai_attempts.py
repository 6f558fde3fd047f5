"""Further attempts at completions with an Idempotency-Key on the OpenAI-compatible endpoint."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.errors import HistoryUnavailable
from groqchat.services.history_store import HistoryStore
from groqchat.services.openai.conversations import Conversations
from tests.conftest import Serve
from tests.support.groq import MockGroq
from tests.support.streams import history, wait_until
from tests.test_openai_idempotency import HELLO, send, succeeds
from tests.test_openai_stored_answers import later_turns


@pytest.mark.parametrize("stream", [False, True])
async def test_only_the_answer_of_the_newest_attempt_is_stored(
    serve: Serve, groq: MockGroq, redis: Any, *, stream: bool
) -> None:
    workers = [await serve(), await serve()]
    release = groq.hold()
    first = asyncio.create_task(send(workers[0], stream=stream, session=True))

    async def is_published() -> bool:
        return len(groq.requests) == 1 and bool(await redis.keys("chat:turn:*"))

    await wait_until(is_published)
    # As if the first worker had paused for longer than its lease.
    (name,) = await redis.keys("chat:claim:*")
    await redis.delete(name)
    second = asyncio.create_task(send(workers[1], stream=stream, session=True))

    async def both_run() -> bool:
        return len(groq.requests) == 2

    await wait_until(both_run)
    release.set()
    status, _, content = await second
    assert (status, b"turn_lost" in content) == (200, False)
    await first
    answers = [each for each in await history(workers[0]) if each["role"] == "assistant"]
    assert len(answers) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_further_attempt_stores_its_messages_once_although_another_turn_follows_them(
    api: ClientSession, groq: MockGroq, *, stream: bool
) -> None:
    await send(api, session=True, headers={"Idempotency-Key": "earlier"}, text="Earlier")
    groq.options.fail, groq.options.fail_times = "503", 1
    assert not await succeeds(api, session=True, stream=stream)
    assert (await send(api, session=True, headers={}, text="Other"))[0] == 200
    assert await succeeds(api, session=True, stream=stream)
    stored = [(each["role"], each["content"]) for each in await history(api)]
    users = [content for role, content in stored if role == "user"]
    assert users == ["Earlier", HELLO, "Other"]
    assert [role for role, _ in stored] == ["user", "assistant", "user", "user", *["assistant"] * 2]
    # The model receives the messages before those of the turn, as on the first attempt.
    assert groq.prompts[-1] == [*stored[:2], ("user", HELLO)]


@pytest.mark.parametrize("context", [0, 2, 50])
@pytest.mark.parametrize("later", [1, 60])
async def test_a_further_attempt_finds_what_earlier_attempts_stored(
    serve: Serve, groq: MockGroq, redis: Redis, context: int, later: int
) -> None:
    api = await serve(groq_max_retries=0, chat_context_messages=context)
    await send(api, session=True, headers={"Idempotency-Key": "earlier"}, text="Earlier")
    messages = [{"role": "user", "content": text} for text in ("One", "Two")]
    groq.options.fail, groq.options.fail_after_chunks = "drop", 3
    assert not await succeeds(api, session=True, stream=True, messages=messages)
    groq.options.fail = None
    await later_turns(api, redis, later)

    async def is_run_again() -> bool:
        return await succeeds(api, session=True, stream=True, messages=messages)

    await wait_until(is_run_again)
    stored = [(each["role"], each["content"]) for each in await history(api)]
    assert [content for role, content in stored if role == "user"] == [
        *("Earlier", "One", "Two"),
        *(f"later {number}" for number in range(later)),
    ]
    assert [role for role, _ in stored].count("assistant") == 2
    assert stored[-1][0] == "assistant"
    # The model receives the messages before those of the turn, as on the first attempt.
    assert groq.prompts[-1] == groq.prompts[1]


async def test_a_rejected_further_attempt_removes_what_earlier_attempts_stored(
    serve: Serve, groq: MockGroq, redis: Redis
) -> None:
    api = await serve(groq_max_retries=0, chat_context_messages=2)
    groq.options.fail, groq.options.fail_after_chunks = "drop", 3
    assert not await succeeds(api, session=True, stream=True)
    await later_turns(api, redis, 5)
    groq.options.fail, groq.options.fail_after_chunks = "400", None

    async def is_rejected() -> bool:
        return (await send(api, session=True, stream=True))[0] == 400

    await wait_until(is_rejected)
    expected = [f"later {number}" for number in range(5)]
    assert [each["content"] for each in await history(api)] == expected


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "other"}])
async def test_a_rejected_further_attempt_leaves_messages_that_another_request_has_answered(
    serve: Serve, groq: MockGroq, headers: dict[str, str]
) -> None:
    api = await serve(groq_max_retries=0)
    messages = [{"role": "user", "content": text} for text in ("One", "Two")]
    groq.options.fail, groq.options.fail_times = "503", 1
    assert not await succeeds(api, session=True, messages=messages)
    assert await succeeds(api, session=True, messages=messages, headers=headers)
    expected = await history(api)
    assert [each["role"] for each in expected] == ["user", "user", "assistant"]
    groq.options.fail, groq.options.fail_times = "400", None
    assert (await send(api, session=True, messages=messages))[0] == 400
    assert await history(api) == expected


async def test_a_message_that_a_request_without_the_key_has_stored_is_not_stored_again(
    serve: Serve, groq: MockGroq, redis: Redis
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail, groq.options.fail_times = "503", 2
    assert not await succeeds(api, session=True, headers={})
    assert not await succeeds(api, session=True)
    await later_turns(api, redis, 1)
    assert await succeeds(api, session=True)
    stored = [each["content"] for each in await history(api)]
    assert stored[:2] == [HELLO, "later 0"]
    assert len(stored) == 3


async def test_an_attempt_that_paused_does_not_remove_the_answer_of_a_newer_one(
    serve: Serve, groq: MockGroq, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [await serve(groq_max_retries=0), await serve()]
    groq.options.fail = "503"
    assert not await succeeds(workers[0], session=True)
    groq.options.fail = None
    # The second attempt pauses before it reads the session.
    begin = Conversations.begin
    paused, goes_on = asyncio.Event(), asyncio.Event()

    async def begin_later(*arguments: Any, **options: Any) -> Any:
        if not paused.is_set():
            paused.set()
            await goes_on.wait()
        return await begin(*arguments, **options)

    async def send_second() -> Any:
        while True:
            # Just after the failure, a request still receives the same error.
            reply = await send(workers[0], session=True)
            if paused.is_set():
                return reply

    monkeypatch.setattr(Conversations, "begin", begin_later)
    second = asyncio.create_task(send_second())
    await paused.wait()
    (name,) = await redis.keys("chat:claim:*")
    await redis.delete(name)
    third = await send(workers[1], session=True)
    assert third[0] == 200
    expected = await history(workers[1])
    assert [each["role"] for each in expected] == ["user", "assistant"]
    goes_on.set()
    assert await second == third
    assert await history(workers[1]) == expected


@pytest.mark.parametrize("failure", [None, "503"])
async def test_a_deletion_before_the_first_save_leaves_no_message(
    serve: Serve, groq: MockGroq, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = failure
    save = HistoryStore.save_messages
    paused, goes_on = asyncio.Event(), asyncio.Event()

    async def save_later(*arguments: Any, **options: Any) -> Any:
        paused.set()
        await goes_on.wait()
        return await save(*arguments, **options)

    monkeypatch.setattr(HistoryStore, "save_messages", save_later)
    messages = [{"role": "user", "content": text} for text in ("One", "Two")]
    running = asyncio.create_task(send(api, session=True, messages=messages))
    await paused.wait()
    async with api.delete("/api/groq-chat/history/s") as response:
        assert response.status == 200
    goes_on.set()
    assert (await running)[0] == int(failure or 200)
    assert await history(api) == []


async def test_an_attempt_whose_pause_was_longer_than_its_deadline_returns_the_newer_answer(
    serve: Serve, groq: MockGroq, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [await serve(), await serve()]
    load = Conversations._read_page
    paused, goes_on = asyncio.Event(), asyncio.Event()

    async def load_later(*arguments: Any) -> Any:
        monkeypatch.setattr(Conversations, "_read_page", load)
        paused.set()
        await goes_on.wait()
        raise HistoryUnavailable("too late")

    monkeypatch.setattr(Conversations, "_read_page", load_later)
    first = asyncio.create_task(send(workers[0], session=True))
    await paused.wait()
    await redis.delete(*await redis.keys("chat:claim:*"))
    second = await send(workers[1], session=True)
    goes_on.set()
    assert await first == second
    assert [each["role"] for each in await history(workers[0])] == ["user", "assistant"]


@pytest.mark.parametrize("failure", [None, "400"])
async def test_thousands_of_messages_are_stored_or_removed_at_once(
    serve: Serve, groq: MockGroq, redis: Redis, failure: Any
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = failure
    messages = [{"role": "user", "content": str(number)} for number in range(9000)]
    assert (await send(api, session=True, messages=messages))[0] == int(failure or 200)
    assert await redis.zcard("chat:session:s") == (0 if failure else 9001)
