"""Which messages have an answer if several requests of one session contain the same messages."""

import asyncio
import time
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.services.redis_chat_service import RedisChatService
from groqchat.storage.command_batcher import CommandBatcher
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.streams import history
from tests.test_openai_idempotency import send
from tests.test_openai_rejections import api, contents, until_asked, users
from tests.test_unanswered_messages import PATHS, REJECTED, exchange, fail, send_new, texts_of

__all__ = ["api"]


@PATHS
async def test_messages_that_a_program_has_stored_do_not_answer_a_failed_one(
    api: ClientSession, groq: MockGroq, redis: Redis, path: str
) -> None:
    store = RedisChatService(redis, CommandBatcher(redis, timeout_s=5), ttl_s=60, timeout_s=5)
    await store.save_message("s", "system", "instructions")
    await fail(api, groq, REJECTED)
    await store.save_message("s", "user", "Q")
    await store.save_message("s", "assistant", "A")
    groq.rejected_texts = {REJECTED}
    assert await send_new(api, path) == 200
    contents = [content for _, content in groq.prompts[-1]]
    assert contents[-3:] == ["Q", "A", "N"]
    if path.startswith("chat"):
        assert contents[0] == "instructions"


async def test_the_answer_to_an_earlier_message_does_not_answer_a_failed_one(
    api: ClientSession, groq: MockGroq
) -> None:
    release = groq.hold()
    other = asyncio.create_task(send(api, session=True, messages=users("X"), headers={}))
    await until_asked(groq, 1)
    groq.before_response = None
    await exchange(api, "Y")
    await fail(api, groq, REJECTED)
    release.set()
    assert (await other)[0] == 200
    groq.rejected_texts = {REJECTED}
    # The context starts after X.
    assert await send_new(api, "chat", context=4) == 200
    assert texts_of(groq, -1) == ["Y", "N"]


@PATHS
async def test_the_answer_to_a_part_of_a_request_does_not_answer_the_rest(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    await exchange(api, "P")
    answer = {"role": "assistant", "content": (await history(api))[1]["content"]}
    transcript = [*users("P"), answer, *users("Q", REJECTED)]
    groq.options.fail = "503"
    assert (await send(api, session=True, messages=transcript, headers={}))[0] == 503
    groq.options.fail, groq.rejected_texts = None, {REJECTED}
    assert (await send(api, session=True, messages=transcript[:-1], headers={}))[0] == 200
    assert await contents(api) == ["P", "answer", "Q", REJECTED, "answer"]
    assert await send_new(api, path) == 200
    assert texts_of(groq, -1) == ["P", "Q", "N"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_retains_a_message_whose_request_has_answers_to_earlier_ones_only(
    api: ClientSession, groq: MockGroq, *, stream: bool
) -> None:
    await exchange(api, "P")
    answer = {"role": "assistant", "content": (await history(api))[1]["content"]}
    transcript = [*users("P"), answer, *users("Q", "R")]
    release = groq.hold()
    first = asyncio.create_task(send(api, session=True, messages=transcript, headers={}))
    await until_asked(groq, 2)
    groq.before_response, groq.rejected = None, {2}
    for messages in (transcript[:-1], transcript):
        assert (await send(api, session=True, messages=messages, headers={}, stream=stream))[
            0
        ] == 200
    release.set()
    assert (await first)[0] == 400
    assert await contents(api) == ["P", "answer", "Q", "R", "answer", "answer"]


@PATHS
async def test_a_prefix_of_an_answer_does_not_answer_a_failed_message(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    await fail(api, groq, REJECTED, "Q")
    groq.rejected_texts = {REJECTED}
    prefix = {"role": "assistant", "content": "prefix"}
    messages = [*users("Q"), prefix]
    assert (await send(api, session=True, messages=messages, headers={}))[0] == 200
    assert await send_new(api, path) == 200
    assert texts_of(groq, -1) == ["Q", "N"]


@PATHS
async def test_a_message_that_a_later_request_answers_too_stays_a_part_of_the_context(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    await fail(api, groq, "Q")
    assert (await send(api, session=True, messages=users("Q", "R"), headers={}))[0] == 200
    await fail(api, groq, REJECTED)
    groq.rejected_texts = {REJECTED}
    assert await send_new(api, path) == 200
    assert texts_of(groq, -1) == ["Q", "R", "N"]


async def test_results_are_sent_with_their_calls_although_these_have_no_answer(
    api: ClientSession, groq: MockGroq
) -> None:
    await fail(api, groq, REJECTED)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    calls = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": "r"}
    groq.options.fail = "503"
    messages = [*users("Q"), calls, result]
    assert (await send(api, session=True, messages=messages, headers={}))[0] == 503
    groq.options.fail, groq.rejected_texts = None, {REJECTED}
    assert (await send(api, session=True, messages=[result], headers={}))[0] == 200
    expected = ["user", "assistant", "tool"]
    assert [role for role, _ in groq.prompts[-1]] == expected
    # They have an answer now.
    assert await send_new(api, "openai") == 200
    assert [role for role, _ in groq.prompts[-1]] == [*expected, "assistant", "user"]
    assert texts_of(groq, -1) == ["Q", "N"]


@PATHS
async def test_a_prefix_whose_request_fails_is_not_an_answer(
    api: ClientSession, groq: MockGroq, path: str
) -> None:
    await exchange(api, "P")
    await fail(api, groq, "Q")
    messages = [*users("Q"), {"role": "assistant", "content": REJECTED}]
    groq.options.fail = "503"
    assert (await send(api, session=True, messages=messages, headers={}))[0] == 503
    groq.options.fail, groq.rejected_texts = None, {REJECTED}
    assert await send_new(api, path) == 200
    assert groq.prompts[-1][-1] == ("user", "N")
    assert texts_of(groq, -1) == ["P", "N"]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_prefix_of_a_rejected_request_stays_if_another_request_contains_it(
    api: ClientSession, groq: MockGroq, headers: dict[str, str], *, stream: bool
) -> None:
    await fail(api, groq, "Q")
    messages = [*users("Q"), {"role": "assistant", "content": "prefix"}]
    release = groq.hold()
    first = asyncio.create_task(send(api, session=True, messages=messages, headers=headers))
    await until_asked(groq, 2)
    groq.before_response, groq.rejected = None, {2, 4}
    second: dict[str, Any] = {"messages": messages, "stream": stream, "headers": {}}
    assert (await send(api, session=True, **second))[0] == 200
    release.set()
    assert (await first)[0] == 400
    assert await contents(api) == ["Q", "answer", "answer"]


@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool"])
@PATHS
async def test_a_message_that_a_program_has_stored_without_an_answer_locks_no_session(
    api: ClientSession, groq: MockGroq, redis: Redis, path: str, role: str
) -> None:
    await exchange(api, "P")
    store = RedisChatService(redis, CommandBatcher(redis, timeout_s=5), ttl_s=60, timeout_s=5)
    await store.save_message("s", role, REJECTED)
    groq.rejected_texts = {REJECTED}
    assert await send_new(api, path) == 200
    assert texts_of(groq, -1) == ["P", "N"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_not_stored_after_the_deletion_of_a_message_of_another_program(
    api: ClientSession, groq: MockGroq, redis: Redis, *, stream: bool
) -> None:
    await redis.zadd("chat:session:s", {'{"role": "user", "content": "Q"}': time.time()})
    release = groq.hold()
    sending = send(api, session=True, messages=users("Q"), headers={}, stream=stream)
    running = asyncio.create_task(sending)
    await until_asked(groq, 1)
    assert (await api.delete(f"{BASE}/history/s")).status == 200
    release.set()
    assert (await running)[0] == 200
    assert await contents(api) == []
