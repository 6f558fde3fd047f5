"""Messages without an answer, which Groq may reject in the context of every later request."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession

from groqchat.errors import HistoryUnavailable
from groqchat.services.history_store import HistoryStore
from groqchat.services.turns.turn import Turn
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.events import all_events
from tests.support.groq import MockGroq
from tests.support.streams import history, wait_until
from tests.test_openai_idempotency import send
from tests.test_openai_rejections import CHAT, api, contents, until_asked, users

__all__ = ["api"]

HISTORY = f"{BASE}/history/s"
REJECTED = "a message that Groq rejects"
# How a client sends the message `N`, without an Idempotency-Key.
PATHS = pytest.mark.parametrize("path", ["chat", "chat stream", "openai", "openai stream"])


async def send_new(api: ClientSession, path: str, **fields: Any) -> int:
    """Send the message `N` and read the whole response; return its status."""
    stream = path.endswith("stream")
    if path.startswith("openai"):
        return (await send(api, session=True, messages=users("N"), headers={}, stream=stream))[0]
    body = {"message": "N", "session_id": "s", "stream": stream, **fields}
    async with api.post(CHAT, json=body) as response:
        if stream and response.status == 200:
            last = (await all_events(response))[-1]
            return 200 if last.name == "done" else int(last.data["status"])
        return response.status


async def fail(api: ClientSession, groq: MockGroq, *texts: str) -> None:
    """Send messages that are stored and have no answer."""
    groq.options.fail = "503"
    assert (await send(api, session=True, messages=users(*texts), headers={}))[0] == 503
    groq.options.fail = None


async def exchange(api: ClientSession, text: str) -> None:
    assert (await send(api, session=True, messages=users(text), headers={}))[0] == 200


def texts_of(groq: MockGroq, request: int) -> list[str]:
    """Return the texts of the user messages in a request to Groq."""
    return [content for role, content in groq.prompts[request] if role == "user"]


@PATHS
async def test_a_rejected_request_is_sent_again_without_messages_that_have_no_answer(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    await exchange(api, "P")
    await fail(api, groq, "failed", REJECTED)
    groq.rejected_texts = {REJECTED}
    assert await send_new(api, path) == 200
    assert texts_of(groq, -2) == ["P", "failed", REJECTED, "N"]
    assert texts_of(groq, -1) == ["P", "N"]
    assert await contents(api) == ["P", "answer", "failed", REJECTED, "N", "answer"]


@PATHS
async def test_a_message_that_has_no_answer_is_a_part_of_the_context_unless_groq_rejects_it(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    await fail(api, groq, "Q")
    assert await send_new(api, path) == 200
    assert texts_of(groq, -1) == ["Q", "N"]
    assert len(groq.requests) == 2


@PATHS
async def test_the_next_message_of_the_session_is_not_the_answer_to_a_failed_one(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    release = groq.hold()
    other = asyncio.create_task(send(api, session=True, messages=users("X"), headers={}))
    await until_asked(groq, 1)
    groq.before_response = None
    await fail(api, groq, REJECTED)
    release.set()
    assert (await other)[0] == 200
    assert await contents(api) == ["X", REJECTED, "answer"]
    groq.rejected_texts = {REJECTED}
    assert await send_new(api, path) == 200
    assert texts_of(groq, -1) == ["X", "N"]


@pytest.mark.parametrize("repetition", [0, 1])
@PATHS
async def test_a_session_stays_usable_after_a_rejected_repetition(
    api: ClientSession, groq: MockGroq, path: str, repetition: int
) -> None:
    await exchange(api, "P")
    answer = {"role": "assistant", "content": (await history(api))[1]["content"]}
    transcript = [*users("P"), answer, *users(REJECTED)]
    release = groq.hold()
    other = asyncio.create_task(send(api, session=True, messages=users("X"), headers={}))
    await until_asked(groq, 2)
    groq.before_response, groq.options.fail = None, "503"
    assert (await send(api, session=True, messages=transcript, headers={}))[0] == 503
    groq.options.fail, groq.rejected_texts = None, {REJECTED}
    release.set()
    assert (await other)[0] == 200
    repeated = [transcript, users(REJECTED)][repetition]
    assert (await send(api, session=True, messages=repeated, headers={}))[0] == 400
    assert await contents(api) == ["P", "answer", "X", REJECTED, "answer"]
    assert await send_new(api, path) == 200
    assert (await contents(api))[-2:] == ["N", "answer"]


@PATHS
async def test_a_rejected_message_is_removed_after_both_attempts(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    await fail(api, groq, "Q")
    groq.options.fail = "400"
    assert await send_new(api, path) == 400
    assert [texts_of(groq, index) for index in (-2, -1)] == [["Q", "N"], ["N"]]
    assert await contents(api) == ["Q"]


@PATHS
async def test_a_rejected_request_is_sent_once_if_every_message_has_an_answer(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    for text in ("P", "Q"):
        await exchange(api, text)
    groq.options.fail = "400"
    assert await send_new(api, path) == 400
    assert len(groq.requests) == 3
    assert await contents(api) == ["P", "answer", "Q", "answer"]


async def test_a_rejected_chat_without_context_is_sent_once(
    api: ClientSession, groq: MockGroq
) -> None:
    await fail(api, groq, "Q")
    groq.options.fail = "400"
    assert await send_new(api, "chat", context=0) == 400
    assert len(groq.requests) == 2


@PATHS
async def test_a_failure_of_the_second_attempt_leaves_the_message(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    await fail(api, groq, REJECTED)
    groq.rejected_texts, groq.options.fail = {REJECTED}, "503"
    assert await send_new(api, path) == 503
    assert await contents(api) == [REJECTED, "N"]


async def test_a_second_prompt_has_no_context_if_the_history_cannot_be_read_again(
    api: ClientSession, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fail(api, groq, REJECTED)
    groq.rejected_texts = {REJECTED}

    async def fail_to_read(*_: Any, **__: Any) -> None:
        raise HistoryUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(HistoryStore, "get_history_page", fail_to_read)
        body = {"message": "N", "session_id": "s"}
        assert (await api.post(CHAT, json=body)).status == 200
    assert texts_of(groq, -1) == ["N"]
    assert await contents(api) == [REJECTED, "N", "answer"]


async def test_a_turn_can_be_stopped_while_its_second_prompt_is_answered(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(groq_max_retries=0)
    await fail(api, groq, REJECTED)
    groq.rejected_texts = {REJECTED}
    groq.options.chunk_ms, groq.options.chunks = 20, 400
    body = {"message": "N", "session_id": "s", "stream": True}
    async with api.post(CHAT, json=body) as response:
        await until_asked(groq, 3)
        turn_id = (await history(api))[-1]["id"]
        async with api.post(f"{CHAT}/{turn_id}/stop") as stopped:
            assert stopped.status == 200
        done = (await all_events(response))[-1]
    assert (done.name, done.data["status"]) == ("done", "incomplete")


async def test_a_message_that_is_removed_before_another_request_retains_it_is_stored_again(
    api: ClientSession, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fail(api, groq, "P")
    release = groq.hold()
    first = asyncio.create_task(send(api, session=True, messages=users("P", "Q"), headers={}))
    await until_asked(groq, 2)
    groq.before_response, groq.rejected = None, {2}
    retain = HistoryStore.retain_messages
    found: list[bool] = []

    async def retain_later(*arguments: Any) -> bool:
        release.set()
        assert (await first)[0] == 400
        found.append(await retain(*arguments))
        return found[-1]

    monkeypatch.setattr(HistoryStore, "retain_messages", retain_later)
    messages = users("P", "Q", "R")
    assert (await send(api, session=True, messages=messages, headers={}))[0] == 200
    assert found == [False, True]
    assert await contents(api) == ["P", "Q", "R", "answer"]


async def test_new_messages_are_not_stored_without_those_that_a_deletion_has_removed(
    api: ClientSession, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fail(api, groq, "Q")
    save = HistoryStore.save_messages

    async def save_later(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(HistoryStore, "save_messages", save)
        assert (await api.delete(HISTORY)).status == 200
        return await save(*arguments, **options)

    monkeypatch.setattr(HistoryStore, "save_messages", save_later)
    assert (await send(api, session=True, messages=users("Q", "R"), headers={}))[0] == 200
    assert await contents(api) == []


async def test_an_incomplete_answer_stays_if_the_repetition_fails(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail, groq.options.fail_after_chunks = "drop", 3
    await send(api, session=True, stream=True, messages=users("Q"), headers={})
    groq.options.fail_after_chunks = None
    before = await history(api)
    for failure in ("503", "400"):
        groq.options.fail = failure
        status, *_ = await send(api, session=True, messages=users("Q"), headers={})
        assert status == int(failure)
        assert await history(api) == before
    groq.options.fail = None
    assert (await send(api, session=True, messages=users("Q"), headers={}))[0] == 200
    assert [each.get("status") for each in await history(api)] == [None, None]


@pytest.mark.parametrize("deleted", [False, True])
@PATHS
async def test_a_message_is_answered_although_one_of_its_context_is_removed_meanwhile(
    api: ClientSession, groq: MockGroq, path: str, *, deleted: bool
) -> None:
    release = groq.hold()
    other = asyncio.create_task(send(api, session=True, messages=users(REJECTED), headers={}))
    await until_asked(groq, 1)
    new = asyncio.create_task(send_new(api, path))
    await until_asked(groq, 2)
    groq.rejected_texts = {REJECTED}
    if deleted:
        assert (await api.delete(HISTORY)).status == 200
    release.set()
    assert (await other)[0] == 400
    assert await new == 200
    assert await contents(api) == ([] if deleted else ["N", "answer"])


@PATHS
async def test_all_prompts_of_a_request_share_its_deadline(
    serve: Serve, groq: MockGroq, path: str
) -> None:
    api = await serve(groq_max_retries=0, groq_timeout_s=1.0)
    await fail(api, groq, REJECTED)
    groq.rejected_texts = {REJECTED}

    async def wait() -> None:
        await asyncio.sleep(0.7)

    groq.before_response = wait
    assert await send_new(api, path) == 504
    assert await contents(api) == [REJECTED, "N"]


async def test_a_stop_between_two_prompts_of_a_turn_ends_it(
    serve: Serve, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await serve(groq_max_retries=0)
    await fail(api, groq, REJECTED)
    groq.rejected_texts = {REJECTED}
    read, stop = HistoryStore.get_history_page, Turn.stop
    stopping, is_stopped = [], asyncio.Event()

    async def read_later(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(HistoryStore, "get_history_page", read)
        page = await read(*arguments, **options)
        turn_id = (await history(api))[-1]["id"]
        stopping.append(asyncio.create_task(api.post(f"{CHAT}/{turn_id}/stop")))
        await is_stopped.wait()
        return page

    def stop_now(*arguments: Any) -> None:
        stop(*arguments)
        is_stopped.set()

    monkeypatch.setattr(Turn, "stop", stop_now)

    monkeypatch.setattr(HistoryStore, "get_history_page", read_later)
    body = {"message": "N", "session_id": "s", "stream": True}
    async with api.post(CHAT, json=body) as response:
        done = (await all_events(response))[-1]
    assert (done.name, done.data["status"], done.data["message"]) == ("done", "incomplete", "")
    assert (await stopping[0]).status == 200


async def test_an_incomplete_answer_of_a_turn_stays_if_its_next_attempt_fails(
    api: ClientSession, groq: MockGroq
) -> None:
    headers = {"Idempotency-Key": "key"}
    body = {"message": "Q", "session_id": "s", "stream": True}

    async def attempt() -> None:
        async with api.post(CHAT, json=body, headers=headers) as response:
            await response.read()

    groq.options.fail, groq.options.fail_after_chunks = "drop", 3
    await attempt()
    before = await history(api)
    assert [each.get("status") for each in before] == [None, "incomplete"]
    groq.options.fail, groq.options.fail_after_chunks = "503", None

    async def is_asked_again() -> bool:
        await attempt()
        return len(groq.requests) == 2

    await wait_until(is_asked_again)
    assert await history(api) == before
    groq.options.fail = None

    async def is_answered() -> bool:
        await attempt()
        return [each.get("status") for each in await history(api)] == [None, None]

    await wait_until(is_answered)
