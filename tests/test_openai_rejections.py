"""Messages of a request that Groq rejects, and other requests that contain them."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.services.history_store import HistoryStore
from groqchat.storage.message_ids import earlier_id, new_message_id
from groqchat.storage.messages import Message
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.store import new_store
from tests.support.streams import history, wait_until
from tests.test_openai_idempotency import send, succeeds

CHAT = f"{BASE}/chat"
DAY_MICROS = 86_400_000_000


def users(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


async def contents(api: ClientSession) -> list[str]:
    """Return the texts of the user messages in the session, and `answer` for each answer."""
    stored = await history(api)
    return [each["content"] if each["role"] == "user" else "answer" for each in stored]


async def send_keyed(api: ClientSession, path: str) -> int:
    """Send the message `Q` with an Idempotency-Key to an endpoint; return the status."""
    if path == "openai":
        return (await send(api, session=True, messages=users("Q")))[0]
    body = {"message": "Q", "session_id": "s"}
    async with api.post(CHAT, json=body, headers={"Idempotency-Key": "key"}) as response:
        return response.status


async def store_tomorrow(redis: Redis) -> None:
    """Store the message `Q` as a worker does whose clock is a day ahead."""
    later = Message(id=earlier_id(new_message_id(), -DAY_MICROS), role="user", content="Q")
    await new_store(redis).save_messages("s", later)


@pytest.fixture
async def api(serve: Serve) -> ClientSession:
    return await serve(groq_max_retries=0)


async def until_asked(groq: MockGroq, count: int) -> None:
    async def is_asked() -> bool:
        return len(groq.requests) == count

    await wait_until(is_asked)


@pytest.mark.parametrize("others", [users("Q"), users("Q", "R")])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "other"}])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_rejected_request_leaves_messages_that_another_request_has_answered(
    api: ClientSession,
    groq: MockGroq,
    others: list[dict[str, str]],
    headers: dict[str, str],
    *,
    stream: bool,
) -> None:
    groq.options.fail = "503"
    assert not await succeeds(api, session=True, messages=users("Q"))
    groq.options.fail = None
    other = {"messages": others, "headers": headers, "stream": stream}
    assert await succeeds(api, session=True, **other)
    expected = await contents(api)
    assert expected == [*(each["content"] for each in others), "answer"]
    groq.options.fail = "400"
    for _ in range(2):
        assert (await send(api, session=True, messages=users("Q")))[0] == 400
    assert await contents(api) == expected


@pytest.mark.parametrize("path", ["openai", "chat"])
async def test_a_request_that_is_rejected_later_leaves_a_message_that_another_one_contains(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    release = groq.hold()
    first: asyncio.Future[Any]
    if path == "chat":
        body = {"message": "Q", "session_id": "s"}
        first = asyncio.ensure_future(api.post(CHAT, json=body))
    else:
        sending = send(api, session=True, messages=users("Q"), headers={})
        first = asyncio.ensure_future(sending)
    await until_asked(groq, 1)
    second = asyncio.create_task(send(api, session=True, messages=users("Q", "R"), headers={}))
    await until_asked(groq, 2)
    groq.rejected = {1}
    release.set()
    await first
    assert (await second)[0] == 200
    assert await contents(api) == ["Q", "R", "answer"]


async def test_a_message_of_several_rejected_requests_stays(
    api: ClientSession, groq: MockGroq
) -> None:
    release = groq.hold()
    sending = []
    for count in (1, 2):
        request = send(api, session=True, messages=users("Q"), headers={})
        sending.append(asyncio.create_task(request))
        await until_asked(groq, count)
    groq.rejected = {1, 2}
    release.set()
    assert [(await each)[0] for each in sending] == [400, 400]
    assert await contents(api) == ["Q"]


async def test_a_rejected_message_does_not_stay_because_of_the_answer_to_another_one(
    api: ClientSession, groq: MockGroq
) -> None:
    release = groq.hold()
    first = asyncio.create_task(send(api, session=True, messages=users("Y"), headers={}))
    await until_asked(groq, 1)
    body: dict[str, Any] = {"message": "Q", "session_id": "s"}
    second = asyncio.ensure_future(api.post(CHAT, json=body))
    await until_asked(groq, 2)
    groq.rejected_texts = {"Q"}
    release.set()
    assert (await first)[0] == 200
    assert (await second).status == 400
    assert await contents(api) == ["Y", "answer"]


async def test_an_incomplete_answer_stays_if_another_request_contains_it(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail, groq.options.fail_after_chunks = "drop", 3
    assert not await succeeds(api, session=True, stream=True, messages=users("Q"))
    groq.options.fail = groq.options.fail_after_chunks = None
    incomplete = (await history(api))[1]
    assert incomplete["status"] == "incomplete"
    answer = {"role": "assistant", "content": incomplete["content"]}
    transcript = [*users("Q"), answer, *users("R")]
    assert await succeeds(api, session=True, messages=transcript, headers={})
    assert await succeeds(api, session=True, stream=True, messages=users("Q"))
    assert await contents(api) == ["Q", "answer", "R", "answer", "answer"]
    assert incomplete in await history(api)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}])
async def test_a_transcript_whose_session_is_deleted_before_its_save_is_not_stored(
    api: ClientSession,
    groq: MockGroq,
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
) -> None:
    assert await succeeds(api, session=True, messages=users("Q"), headers={})
    answer = {"role": "assistant", "content": (await history(api))[1]["content"]}
    save = HistoryStore.save_messages

    async def save_later(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(HistoryStore, "save_messages", save)
        assert (await api.delete(f"{BASE}/history/s")).status == 200
        return await save(*arguments, **options)

    monkeypatch.setattr(HistoryStore, "save_messages", save_later)
    transcript = [*users("Q"), answer, *users("R")]
    assert (await send(api, session=True, messages=transcript, headers=headers))[0] == 200
    assert await contents(api) == []


@pytest.mark.parametrize("path", ["openai", "chat"])
async def test_a_rejected_request_whose_message_stays_can_be_repeated(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    releases = [groq.hold()]
    first = asyncio.create_task(send_keyed(api, path))
    await until_asked(groq, 1)
    releases.append(groq.hold())
    other = asyncio.create_task(send(api, session=True, messages=users("Q"), headers={}))
    await until_asked(groq, 2)
    groq.rejected = {1, 2}
    groq.before_response = None
    releases[0].set()
    assert await first == 400

    async def is_answered() -> bool:
        return await send_keyed(api, path) == 200

    await wait_until(is_answered)
    releases[1].set()
    assert (await other)[0] == 400
    assert await contents(api) == ["Q", "answer"]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "other"}])
async def test_a_request_that_fails_retains_the_messages_of_another_one(
    api: ClientSession, groq: MockGroq, headers: dict[str, str]
) -> None:
    releases = [groq.hold()]
    first = asyncio.create_task(send(api, session=True, messages=users("Q"), headers={}))
    await until_asked(groq, 1)
    groq.rejected = {1}
    groq.before_response, groq.options.fail = None, "503"
    other: dict[str, Any] = {"session": True, "messages": users("Q", "R"), "headers": headers}
    assert (await send(api, **other))[0] == 503
    groq.options.fail = None
    releases[0].set()
    assert (await first)[0] == 400
    assert await contents(api) == ["Q", "R"]

    async def is_answered() -> bool:
        return await succeeds(api, **other)

    await wait_until(is_answered)
    assert await contents(api) == ["Q", "R", "answer"]


@pytest.mark.parametrize(("headers", "expected"), [({}, ["Q"]), ({"Idempotency-Key": "key"}, [])])
async def test_a_rejected_repetition_removes_what_its_own_attempts_have_stored(
    api: ClientSession, groq: MockGroq, headers: dict[str, str], expected: list[str]
) -> None:
    groq.options.fail = "503"
    assert (await send(api, session=True, messages=users("Q"), headers=headers))[0] == 503
    groq.options.fail = "400"

    async def is_rejected() -> bool:
        return (await send(api, session=True, messages=users("Q"), headers=headers))[0] == 400

    await wait_until(is_rejected)
    assert await contents(api) == expected


@pytest.mark.parametrize("path", ["openai", "chat"])
@pytest.mark.parametrize("failure", [None, "503"])
async def test_a_rejected_request_leaves_the_messages_of_a_running_one(
    api: ClientSession, groq: MockGroq, path: str, failure: Any
) -> None:
    release = groq.hold()
    first: asyncio.Future[Any]
    if path == "chat":
        first = asyncio.ensure_future(api.post(CHAT, json={"message": "Q", "session_id": "s"}))
    else:
        sending = send(api, session=True, messages=users("P", "Q"), headers={})
        first = asyncio.ensure_future(sending)
    await until_asked(groq, 1)
    asked = await contents(api)
    groq.before_response, groq.rejected = None, {2}
    messages = users(*asked)
    assert (await send(api, session=True, messages=messages, headers={}))[0] == 400
    groq.options.fail = failure
    release.set()
    await first
    assert await contents(api) == [*asked, *([] if failure else ["answer"])]


async def test_messages_that_a_request_retains_are_deleted_with_their_session(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    release = groq.hold()
    first = asyncio.create_task(send(api, session=True, messages=users("Q"), headers={}))
    await until_asked(groq, 1)
    groq.before_response, groq.rejected = None, {2}
    assert (await send(api, session=True, messages=users("Q"), headers={}))[0] == 400
    assert (await api.delete(f"{BASE}/history/s")).status == 200
    release.set()
    assert (await first)[0] == 200
    assert await contents(api) == []
    assert await redis.keys("*retained*") == []


async def test_a_message_that_is_stored_after_the_start_of_a_keyed_request_is_not_a_part_of_it(
    api: ClientSession, redis: Redis
) -> None:
    await store_tomorrow(redis)
    assert await succeeds(api, session=True, messages=users("Q", "R"))
    assert await contents(api) == ["Q", "R", "answer", "Q"]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "other"}])
async def test_a_transcript_retains_a_message_whose_request_is_rejected_after_a_later_answer(
    api: ClientSession, groq: MockGroq, headers: dict[str, str]
) -> None:
    release = groq.hold()
    first = asyncio.create_task(send(api, session=True, messages=users("Q"), headers={}))
    await until_asked(groq, 1)
    groq.before_response, groq.rejected = None, {1}
    assert await succeeds(api, session=True, messages=users("Y"), headers={})
    answer = {"role": "assistant", "content": (await history(api))[2]["content"]}
    transcript = [*users("Q", "Y"), answer, *users("R")]
    assert await succeeds(api, session=True, messages=transcript, headers=headers)
    release.set()
    assert (await first)[0] == 400
    assert await contents(api) == ["Q", "Y", "answer", "R", "answer"]


async def test_an_answer_follows_a_message_of_a_worker_whose_clock_is_ahead(
    api: ClientSession, redis: Redis
) -> None:
    await store_tomorrow(redis)
    assert await succeeds(api, session=True, messages=users("Q"), headers={})
    assert await contents(api) == ["Q", "answer"]
