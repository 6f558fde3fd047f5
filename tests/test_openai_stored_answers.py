"""Stored answers of keyed requests on the OpenAI-compatible endpoint, and further attempts."""

import asyncio
import json
import time
from datetime import datetime
from typing import Any

import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI
from pydantic import SecretStr
from redis.asyncio import Redis

from groqchat.storage import keys
from groqchat.storage.messages import encode_member
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.store import new_message
from tests.support.streams import history, wait_until
from tests.test_openai_events import COMPLETIONS
from tests.test_openai_idempotency import HELLO, MODEL, send, succeeds


async def later_turns(api: ClientSession, redis: Redis, count: int) -> None:
    """Add messages to the session, as if other turns had run since."""
    messages = [new_message(f"later {number}") for number in range(count)]
    await redis.zadd(
        "chat:session:s", {encode_member(message): message.score for message in messages}
    )


async def lose_events(redis: Any) -> None:
    """Delete the events of a turn that is over, as if its worker had died before it stored them."""

    async def is_over() -> bool:
        (claim,) = await redis.keys(f"{keys.CLAIM_PREFIX}*")
        return int(await redis.ttl(claim)) > keys.TURN_LEASE_S

    await wait_until(is_over)
    for prefix in (keys.CLAIM_PREFIX, keys.TURN_PREFIX):
        await redis.delete(*await redis.keys(f"{prefix}*"))


async def test_a_further_attempt_returns_the_answer_that_an_earlier_one_has_stored(
    serve: Serve, groq: MockGroq, redis: Redis
) -> None:
    workers = [await serve(), await serve()]
    _, _, content = await send(workers[0], session=True)
    first = json.loads(content)
    await lose_events(redis)
    before = await history(workers[0])
    status, _, content = await send(workers[1], session=True)
    assert (status, len(groq.requests)) == (200, 1)
    assert json.loads(content) == {
        "id": f"chatcmpl-{before[1]['id']}",
        "object": "chat.completion",
        "created": int(datetime.fromisoformat(before[1]["timestamp"]).timestamp()),
        "model": first["model"],
        "choices": [
            {
                "index": 0,
                "message": first["choices"][0]["message"],
                "finish_reason": first["choices"][0]["finish_reason"],
            }
        ],
    }
    assert await history(workers[1]) == before


@pytest.mark.parametrize("has_tools", [False, True])
async def test_a_further_stream_contains_the_answer_that_an_earlier_one_has_stored(
    serve: Serve, groq: MockGroq, redis: Redis, *, has_tools: bool
) -> None:
    workers = [await serve(), await serve()]
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "strict": True,
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    }
    fields = {"tools": [tool], "tool_choice": "required"} if has_tools else {}
    completions: list[tuple[str, list[str], str]] = []
    for worker in workers:
        url = str(worker._build_url("/openai/v1"))
        async with AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            stream = client.chat.completions.stream(
                model="openai/gpt-oss-20b",
                messages=[{"role": "user", "content": HELLO}],
                extra_headers={"X-Session-Id": "s", "Idempotency-Key": "key"},
                **fields,  # type: ignore[arg-type] # the types of the SDK are unions
            )
            async with stream as events:
                (choice,) = (await events.get_final_completion()).choices
        calls = [call.model_dump_json() for call in choice.message.tool_calls or ()]
        assert bool(calls) == has_tools
        completions.append((choice.message.content or "", calls, choice.finish_reason))
        await lose_events(redis)
    assert completions[0] == completions[1]
    assert len(groq.requests) == 1
    assert [each["role"] for each in await history(workers[1])] == ["user", "assistant"]


@pytest.mark.parametrize("path", [f"{BASE}/chat", COMPLETIONS])
async def test_an_answer_is_found_after_many_messages_of_other_turns(
    serve: Serve, groq: MockGroq, redis: Redis, path: str
) -> None:
    workers = [await serve(), await serve()]
    release = groq.hold()
    user = {"role": "user", "content": HELLO}
    chat = {"message": HELLO, "session_id": "s"}
    content = chat if path.endswith("/chat") else {"model": MODEL, "messages": [user]}
    headers = {"X-Session-Id": "s", "Idempotency-Key": "key"}
    first = asyncio.create_task(workers[0].post(path, json=content, headers=headers))

    async def is_asked() -> bool:
        return bool(groq.requests)

    await wait_until(is_asked)
    await later_turns(workers[0], redis, 450)
    release.set()
    assert (await first).status == 200
    await lose_events(redis)
    assert (await workers[1].post(path, json=content, headers=headers)).status == 200
    assert len(groq.requests) == 1
    assert await redis.zcard("chat:session:s") == 452


async def test_a_complete_answer_that_is_stored_late_replaces_an_incomplete_one(
    serve: Serve, groq: MockGroq, own_redis_server: RedisServer
) -> None:
    url = SecretStr(own_redis_server.url())
    api = await serve(redis_url=url, redis_timeout_s=0.4, groq_max_retries=0)
    groq.options.fail, groq.options.fail_after_chunks = "drop", 3
    assert not await succeeds(api, session=True, stream=True)
    groq.options.fail = None

    async def freeze() -> None:
        own_redis_server.freeze()

    async def is_run_again() -> bool:
        groq.before_response = freeze
        await send(api, session=True, stream=True)
        own_redis_server.thaw()
        return len(groq.requests) == 2

    await wait_until(is_run_again)

    async def statuses() -> list[Any]:
        return [each.get("status") for each in await history(api)]

    async def is_replaced() -> bool:
        return await statuses() == [None, None]

    await wait_until(is_replaced)


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("rejected", [False, True])
async def test_a_keyed_request_waits_once_for_a_frozen_redis(
    serve: Serve, groq: MockGroq, own_redis_server: RedisServer, *, session: bool, rejected: bool
) -> None:
    api = await serve(redis_url=SecretStr(own_redis_server.url()), redis_timeout_s=2.0)

    async def freeze() -> None:
        own_redis_server.freeze()

    groq.before_response = freeze
    groq.rejected = {1} if rejected else set()
    began = time.monotonic()
    status, _, _ = await send(api, session=session)
    waited_s = time.monotonic() - began
    own_redis_server.thaw()
    assert status == (400 if rejected else 200)
    assert waited_s < 3.9
