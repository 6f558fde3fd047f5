"""Entries of the session index: how they are added, rebuilt and pruned."""

import asyncio
import logging
import time

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis

from groqchat.storage import index_pruner, session_index
from groqchat.storage.index_pruner import INTERVAL_S, prune_index
from groqchat.storage.reindex import Progress, reindex
from groqchat.storage.session_index import SessionIndex

INDEX = "chat:sessions"
TIMEOUT_S = 5


class Delays:
    """Replaces asyncio.sleep: records the delays, and ends the task's waiting on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[float] = []
        self.minute = asyncio.Event()
        self._sleep = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", self._record)

    async def _record(self, delay_s: float) -> None:
        self.recorded.append(delay_s)
        if delay_s == INTERVAL_S:
            self.minute.set()
            await asyncio.Event().wait()
        await self._sleep(0)

    async def wait_for_the_interval(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self.minute.wait()


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> Delays:
    """The delays between the steps of the pruner."""
    monkeypatch.setattr(session_index, "PRUNE_BATCH", 10)
    monkeypatch.setattr(index_pruner, "PRUNE_BATCH", 10)
    return Delays(monkeypatch)


@pytest.mark.parametrize(
    ("expired", "expected"),
    [
        (0, [INTERVAL_S]),
        (9, [INTERVAL_S]),
        (10, [0, INTERVAL_S]),
        (25, [0, 0, INTERVAL_S]),
    ],
)
async def test_full_batches_follow_each_other_at_once(
    delays: Delays, expired: int, expected: list[float]
) -> None:
    async with FakeAsyncRedis() as redis:
        now = time.time()
        entries = {f"expired{number}": now - 100 + number for number in range(expired)}
        await redis.zadd(INDEX, {**entries, "live": now + 100})
        async with prune_index(redis, 5):
            await delays.wait_for_the_interval()
        assert await redis.zrange(INDEX, 0, -1) == [b"live"]
    assert delays.recorded == expected


async def test_an_unavailable_redis_is_logged_and_the_pruner_waits_for_a_minute(
    delays: Delays, caplog: pytest.LogCaptureFixture
) -> None:
    async with Redis(unix_socket_path="/nowhere/redis.sock") as redis, prune_index(redis, 0.01):
        await delays.wait_for_the_interval()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("could not prune the session index: ")
    assert delays.recorded[-1] == INTERVAL_S


async def test_a_redis_that_does_not_answer_is_logged_at_the_deadline(
    delays: Delays, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async with FakeAsyncRedis() as redis:
        monkeypatch.setattr(redis, "execute_command", never)
        async with prune_index(redis, 0.01):
            await delays.wait_for_the_interval()
    assert caplog.messages == ["could not prune the session index: no answer within 0.01 s"]


async def test_a_rejected_command_is_logged_with_its_code_only(
    delays: Delays, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeAsyncRedis() as redis:
        await redis.set(INDEX, "not a sorted set")
        async with prune_index(redis, 5):
            await delays.wait_for_the_interval()
    assert caplog.messages == ["could not prune the session index: ResponseError: WRONGTYPE"]
    assert delays.recorded == [INTERVAL_S]


async def test_the_task_is_named_after_its_work(delays: Delays) -> None:
    async with FakeAsyncRedis() as redis, prune_index(redis, 5):
        await delays.wait_for_the_interval()
        names = [task.get_name() for task in asyncio.all_tasks()]
    assert "prune the session index" in names


async def create_session(redis: Redis, name: str, *, ttl_s: int | None = None) -> None:
    await redis.zadd(f"chat:session:{name}", {"member": 1.0})
    if ttl_s is not None:
        await redis.expire(f"chat:session:{name}", ttl_s)


async def test_sessions_are_added_by_the_ttl_of_their_keys() -> None:
    async with FakeAsyncRedis() as redis:
        index, now = SessionIndex(redis), time.time()
        await create_session(redis, "new", ttl_s=1000)
        await create_session(redis, "never-expires")
        await create_session(redis, "renewed", ttl_s=50)
        # An entry with a later expiry is not changed: another caller has just renewed it.
        await redis.zadd(INDEX, {"renewed": now + 100})

        assert await index.add_existing(["new", "renewed", "never-expires", "unknown"]) == 3
        assert await index.add_existing(["unknown"]) == 0
        assert await redis.zrange(INDEX, 0, -1, withscores=True) == [
            (b"renewed", now + 100),
            (b"new", pytest.approx(now + 1000, abs=5)),
            (b"never-expires", float("inf")),
        ]


async def test_a_session_that_is_written_while_its_entry_is_removed_stays_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with FakeAsyncRedis() as redis:
        index = SessionIndex(redis)
        await redis.zadd(INDEX, {"late": time.time() + 100})
        remove = redis.zrem

        async def write_and_remove(key: str, *names: bytes) -> int:
            await create_session(redis, "late", ttl_s=1000)
            return int(await remove(key, *names))

        monkeypatch.setattr(redis, "zrem", write_and_remove)
        pages = [
            await index.page(limit=1, after=None, before=None, oldest_first=True) for _ in range(2)
        ]
    assert [page.sessions for page in pages] == [[], ["late"]]


async def test_a_rebuild_reads_only_the_sorted_sets_of_sessions() -> None:
    async with FakeAsyncRedis() as redis:
        for number in range(200):
            await create_session(redis, f"s{number}", ttl_s=1000)
        await redis.zadd("leaderboard:of-another-program", {"member": 1.0})
        await redis.zadd(INDEX, {"stale": time.time() - 100})
        # One SCAN reads up to 1000 keys.
        assert [step async for step in reindex(redis)] == [Progress(listed=200, unaddressable=0)]
        assert await redis.zcard(INDEX) == 201
