"""Reindexing: adding sessions without an index entry to the session index."""

import json
import time

import pytest
from redis.asyncio import Redis

from groqchat.services.history_store import HistoryStore
from groqchat.storage import reindex as reindex_module
from groqchat.storage.reindex import Progress, reindex

MEMBER = json.dumps({"role": "user", "content": "Hello", "model": "m", "timestamp": "t"})


async def total(redis: Redis) -> Progress:
    steps = [step async for step in reindex(redis)]
    return Progress(
        listed=sum(step.listed for step in steps),
        unaddressable=sum(step.unaddressable for step in steps),
    )


async def test_existing_sessions_are_listed_by_expiry_time(
    store: HistoryStore, any_redis: Redis
) -> None:
    for name, ttl_s in (("old", 100), ("new", 300), ("middle", 200)):
        await any_redis.zadd(f"chat:session:{name}", {MEMBER: 1.7e9})
        await any_redis.expire(f"chat:session:{name}", ttl_s)

    assert await total(any_redis) == Progress(listed=3, unaddressable=0)
    assert (await store.get_sessions_page()).sessions == ["new", "middle", "old"]
    score = await any_redis.zscore("chat:sessions", "middle")
    assert score == pytest.approx(time.time() + 200, abs=5)


async def test_a_session_without_a_ttl_is_listed_and_stays_without_a_ttl(
    store: HistoryStore, any_redis: Redis
) -> None:
    await any_redis.zadd("chat:session:persistent", {MEMBER: 1.7e9})
    await any_redis.zadd("chat:session:persistent-2", {MEMBER: 1.7e9})
    await total(any_redis)

    first = await store.get_sessions_page(limit=1)
    second = await store.get_sessions_page(limit=1, after=first.cursor)
    assert first.sessions + second.sessions == ["persistent-2", "persistent"]
    assert await any_redis.ttl("chat:session:persistent") == -1


async def test_keys_that_are_not_sessions_are_skipped(
    store: HistoryStore, any_redis: Redis
) -> None:
    await any_redis.set("chat:session:text", "not a sorted set")
    await any_redis.set("other", "key")
    await any_redis.zadd("chat:session:has space", {MEMBER: 1.7e9})
    await any_redis.zadd(b"chat:session:\xff", {MEMBER: 1.7e9})
    await any_redis.zadd("chat:session:good", {MEMBER: 1.7e9})

    assert await total(any_redis) == Progress(listed=1, unaddressable=2)
    assert (await store.get_sessions_page()).sessions == ["good"]


async def test_sessions_are_read_in_batches_of_limited_size(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindex_module, "SCAN_BATCH", 10)
    for number in range(100):
        await any_redis.zadd(f"chat:session:s{number}", {MEMBER: 1.7e9})

    steps = [step.listed async for step in reindex(any_redis)]
    assert sum(steps) == 100
    assert len(steps) > 2
