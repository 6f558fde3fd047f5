"""A deletion that a full Redis does not announce: it is announced when Redis accepts writes."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession
from pydantic import SecretStr
from redis.asyncio import Redis

from groqchat.openai_paths import COMPLETIONS_PATH
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.streams import STREAM_REQUEST, wait_until

KEY = {"Idempotency-Key": "0ff6a6ae-5a27-4f3c-9b42-7bd3a5a4e7a1"}
OPENAI_BODY = {
    "model": "openai/gpt-oss-20b",
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
}
# Path, body and headers of each kind of turn with events in Redis.
TURNS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "chat": (f"{BASE}/chat", STREAM_REQUEST, {}),
    "keyed chat": (f"{BASE}/chat", STREAM_REQUEST, KEY),
    "keyed completion": (COMPLETIONS_PATH, OPENAI_BODY, {**KEY, "X-Session-Id": "s"}),
}


async def begin(api: ClientSession, redis: Redis, kind: str) -> tuple[ClientResponse, str]:
    """Start a turn; return its response, and its id when Redis has some of its events."""
    path, body, headers = TURNS[kind]
    response = await api.post(path, json=body, headers=headers)
    assert response.status == 200
    names: list[bytes | str] = []

    async def is_published() -> bool:
        names[:] = await redis.keys("chat:turn:*")
        return bool(names) and await redis.xlen(names[0]) > 2

    await wait_until(is_published)
    return response, str(names[0])[:-1].rpartition(":")[2]


@pytest.mark.parametrize("kind", TURNS)
async def test_the_events_of_a_running_turn_are_deleted_with_its_session_while_redis_is_full(
    serve: Serve, groq: MockGroq, own_redis_server: RedisServer, kind: str
) -> None:
    groq.options.chunk_ms, groq.options.chunks = 20, 60
    url = own_redis_server.url()
    workers = [await serve(redis_url=SecretStr(url)) for _ in range(2)]
    async with Redis.from_url(url, protocol=2) as redis:
        response, turn_id = await begin(workers[0], redis, kind)
        await redis.config_set("maxmemory", "1")

        async def has_rejected_events() -> bool:
            return "errorstat_OOM" in await redis.info("errorstats")

        await wait_until(has_rejected_events)
        deleted = await workers[1].delete(f"{BASE}/history/s")
        assert deleted.status == 200
        await redis.config_set("maxmemory", "0")
        # The client that is connected receives the whole answer.
        text = await response.text()
        assert text.count("data: ") > 40
        async with asyncio.timeout(5):
            while await redis.keys("chat:turn:*"):
                await asyncio.sleep(0.02)
        for worker in workers:
            again = await worker.get(f"{BASE}/chat/{turn_id[:17]}/events")
            assert again.status == 404
        assert await redis.keys("chat:claim:*") == []
        assert await redis.exists("chat:session:s") == 0
