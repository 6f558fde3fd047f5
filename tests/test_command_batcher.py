"""Writers that share their round trips: bursts, bounds, one caller's fault."""

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from groqchat.errors import HistoryFailed, HistoryUnavailable
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.settings import Settings
from groqchat.storage import command_batcher
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.connection import open_redis
from groqchat.storage.redis_internals import execute_raw
from tests.support.store import TTL_S, new_store
from tests.test_store import saved


async def test_many_writers_need_few_connections(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url, redis_max_connections=4)
    async with open_redis(settings) as client:
        store = new_store(client, timeout_s=10)
        await asyncio.gather(*(saved(store, 1) for _ in range(200)))
        assert await store.get_session_size("s") == 200
        assert len(await client.client_list()) <= 4


async def test_a_burst_of_writers_is_served_whole(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url)
    async with open_redis(settings) as client:
        store = new_store(client, timeout_s=settings.redis_timeout_s)
        await asyncio.gather(*(saved(store, 1) for _ in range(4000)))
        assert await store.get_session_size("s") == 4000


async def test_a_caller_that_leaves_takes_nothing_from_the_others(
    store: RedisChatService,
) -> None:
    leaving = asyncio.create_task(saved(store, 1))
    staying = asyncio.create_task(saved(store, 1))
    await asyncio.sleep(0)
    leaving.cancel()

    kept = await staying
    assert kept[0] in (await store.get_session_history("s")).messages
    assert leaving.cancelled() or await asyncio.wait([leaving]) is not None


async def test_one_session_of_another_kind_fails_for_its_own_caller_only(
    store: RedisChatService, any_redis: Redis
) -> None:
    await any_redis.set("chat:session:broken", "not a sorted set")
    results = await asyncio.gather(
        *(saved(store, 1, name) for name in ("good", "broken", "fine")), return_exceptions=True
    )
    assert [type(result) for result in results] == [list, HistoryFailed, list]


async def test_a_command_that_is_refused_fails_for_its_own_caller_only(redis_url: str) -> None:
    async with open_redis(Settings(redis_url=redis_url)) as client:
        batcher = CommandBatcher(client, timeout_s=5)
        results = await asyncio.gather(
            batcher.transact([("SET", "a", 1), ("GET", "a")]),
            batcher.transact([("NO-SUCH-COMMAND", "a")]),
            batcher.transact([("GET", "a")]),
            return_exceptions=True,
        )
    assert results[0] == [b"OK", b"1"]
    assert isinstance(results[1], HistoryFailed)
    assert results[2] == [b"1"]


async def test_callers_of_many_groups_get_their_own_replies(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_batcher, "MAX_GROUP_CALLS", 3)
    monkeypatch.setattr(command_batcher, "MAX_BATCH_CALLS", 7)
    batcher = CommandBatcher(any_redis, timeout_s=5)
    results = await asyncio.gather(
        *(
            batcher.transact([("SET", f"k{number}", number)] * (number % 3) + [("ECHO", number)])
            for number in range(50)
        )
    )
    assert [result[-1] for result in results] == [b"%d" % number for number in range(50)]
    assert [len(result) for result in results] == [number % 3 + 1 for number in range(50)]


@pytest.mark.parametrize(("calls", "sizes"), [(1, [1]), (8, [8]), (9, [5, 4]), (64, [32, 32])])
async def test_two_flushes_share_what_waits_where_that_is_much(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch, calls: int, sizes: list[int]
) -> None:
    begun: list[int] = []
    all_under_way = asyncio.Event()

    async def slow_exchange(connection: AbstractConnection, request: bytes, count: int) -> Any:
        # MULTI and EXEC are the other two.
        begun.append(count - 2)
        if len(begun) == len(sizes):
            all_under_way.set()
        await all_under_way.wait()
        return await execute_raw(connection, request, count)

    monkeypatch.setattr(command_batcher, "choose_execute", lambda: slow_exchange)
    batcher = CommandBatcher(any_redis, timeout_s=5)
    results = await asyncio.gather(
        *(batcher.transact([("ECHO", number)]) for number in range(calls))
    )
    assert results == [[b"%d" % number] for number in range(calls)]
    assert sorted(begun, reverse=True) == sizes


async def test_more_calls_than_may_wait_are_refused_at_once(
    store: RedisChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_batcher, "MAX_WAITING_CALLS", 3)
    results = await asyncio.gather(*(saved(store, 1) for _ in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [list] * 3 + [HistoryUnavailable] * 2


async def test_calls_that_a_slow_server_leaves_waiting_past_the_deadline_fail(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow_exchange(connection: AbstractConnection, request: bytes, count: int) -> Any:
        await asyncio.sleep(0.5)
        return await execute_raw(connection, request, count)

    monkeypatch.setattr(command_batcher, "choose_execute", lambda: slow_exchange)
    monkeypatch.setattr(command_batcher, "MAX_BATCH_CALLS", 1)
    monkeypatch.setattr(command_batcher, "MAX_FLUSHES", 1)
    batcher = CommandBatcher(any_redis, timeout_s=0.9)
    results = await asyncio.gather(
        *(batcher.transact([("ECHO", number)]) for number in range(6)), return_exceptions=True
    )
    # The third has waited for a second when its turn comes.
    assert results[:2] == [[b"0"], [b"1"]]
    assert [type(result) for result in results[2:]] == [HistoryUnavailable] * 4


async def test_calls_that_fail_leave_nothing_for_the_garbage_collector(redis_url: str) -> None:
    async with open_redis(Settings(redis_url=redis_url)) as client:
        batcher = CommandBatcher(client, timeout_s=5)

        async def fail() -> None:
            with suppress(HistoryFailed):
                await batcher.transact([("NO-SUCH-COMMAND",)])

        await fail()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await fail()
            assert gc.collect() < 50
        finally:
            gc.enable()
