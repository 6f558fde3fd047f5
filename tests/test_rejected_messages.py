"""User messages that Groq rejects: they leave the history, so that the session continues."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession
from pydantic import SecretStr

from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.streams import history

KEY = {"Idempotency-Key": "5c1f6f1c-6e53-4a4c-9d0b-3d1f7d0a55a1"}
# Fields and headers of each kind of request.
KINDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "plain": ({}, {}),
    "stream": ({"stream": True}, {}),
    "keyed": ({}, KEY),
    "keyed stream": ({"stream": True}, KEY),
}
# Status and code for each rejection of Groq.
REJECTIONS = {
    "400": (400, "completion_rejected"),
    "413": (413, "prompt_too_large"),
    "422": (400, "completion_rejected"),
}
OTHER_FAILURES = ["401", "404", "429", "498", "500", "503", "504", "drop"]


async def send(api: ClientSession, message: str, kind: str = "plain") -> ClientResponse:
    fields, headers = KINDS[kind]
    body = {"message": message, "session_id": "s", **fields}
    response = await api.post(f"{BASE}/chat", json=body, headers=headers)
    await response.read()
    return response


async def stored(api: ClientSession) -> list[str]:
    return [message["content"] for message in await history(api) if message["role"] == "user"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fail", REJECTIONS)
async def test_a_message_that_groq_rejects_is_not_in_the_context_of_later_turns(
    api: ClientSession, groq: MockGroq, fail: Any, kind: str
) -> None:
    assert (await send(api, "first")).status == 200
    groq.options.fail = fail
    await assert_error(await send(api, "too long", kind), *REJECTIONS[fail])
    assert await stored(api) == ["first"]
    groq.options.fail = None
    assert (await send(api, "second")).status == 200
    assert [content for role, content in groq.prompts[-1] if role == "user"] == ["first", "second"]
    assert await stored(api) == ["first", "second"]


async def test_a_session_whose_only_message_is_rejected_is_not_listed(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail = "413"
    await send(api, "too long")
    response = await api.get(f"{BASE}/sessions")
    assert (await response.json())["sessions"] == []


async def test_a_rejected_message_can_be_repeated_with_its_key(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail = "413"
    await send(api, "Hello", "keyed")
    groq.options.fail = None
    again = await (await send(api, "Hello", "keyed")).json()
    assert again["history_saved"] is True
    assert await stored(api) == ["Hello"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fail", OTHER_FAILURES)
async def test_a_message_stays_if_groq_fails_for_another_reason(
    serve: Serve, groq: MockGroq, fail: Any, kind: str
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = fail
    assert (await send(api, "Hello", kind)).status >= 400
    assert await stored(api) == ["Hello"]


async def test_a_rejection_after_the_first_text_keeps_message_and_answer(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail, groq.options.fail_after_chunks = "400", 2
    await send(api, "Hello", "stream")
    messages = await history(api)
    assert [(message["role"], message.get("status")) for message in messages] == [
        ("user", None),
        ("assistant", "incomplete"),
    ]


async def test_the_error_of_a_rejected_message_waits_for_redis_only_once(
    serve: Serve, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    api = await serve(redis_url=SecretStr(own_redis_server.url()), redis_timeout_s=2)
    await send(api, "first")
    groq.options.fail = "413"
    own_redis_server.freeze()
    async with asyncio.timeout(3.9):
        await assert_error(await send(api, "too long"), 413, "prompt_too_large")
    own_redis_server.thaw()


async def test_a_second_prompt_waits_for_redis_only_once(
    serve: Serve, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    api = await serve(
        redis_url=SecretStr(own_redis_server.url()), redis_timeout_s=2, groq_max_retries=0
    )
    groq.options.fail = "503"
    await send(api, "first")
    groq.options.fail, groq.rejected_texts = None, {"first"}

    async def freeze() -> None:
        own_redis_server.freeze()

    groq.before_response = freeze
    async with asyncio.timeout(3.9):
        response = await send(api, "second")
    own_redis_server.thaw()
    assert (response.status, (await response.json())["history_saved"]) == (200, False)
