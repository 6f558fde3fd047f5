"""The command batcher: concurrent callers, limits, and errors of one caller."""

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from groqchat.errors import HistoryFailed, HistoryUnavailable
from groqchat.services.history_store import HistoryStore
from groqchat.settings import Settings
from groqchat.storage import command_batcher
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.connection import open_redis
from groqchat.storage.redis_internals import execute_raw
from tests.support.garbage import no_gc
from tests.support.store import new_store, save_messages


async def test_many_concurrent_writers_share_few_connections(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url, redis_max_connections=4)
    async with open_redis(settings) as client:
        store = new_store(client, timeout_s=10)
        await asyncio.gather(*(save_messages(store, 1) for _ in range(200)))
        assert await store.get_session_size("s") == 200
        assert len(await client.client_list()) <= 4


async def test_every_write_of_a_burst_is_stored(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url)
    async with open_redis(settings) as client:
        store = new_store(client, timeout_s=settings.redis_timeout_s)
        await asyncio.gather(*(save_messages(store, 1) for _ in range(4000)))
        assert await store.get_session_size("s") == 4000


async def test_a_cancelled_caller_does_not_affect_other_callers(
    store: HistoryStore,
) -> None:
    cancelled = asyncio.create_task(save_messages(store, 1))
    other = asyncio.create_task(save_messages(store, 1))
    await asyncio.sleep(0)
    cancelled.cancel()

    saved = await other
    assert saved[0] in (await store.get_history_page("s")).messages
    assert cancelled.cancelled() or await asyncio.wait([cancelled]) is not None


async def test_a_key_of_the_wrong_type_fails_only_for_its_own_caller(
    store: HistoryStore, any_redis: Redis
) -> None:
    await any_redis.set("chat:session:broken", "not a sorted set")
    results = await asyncio.gather(
        *(save_messages(store, 1, name) for name in ("good", "broken", "fine")),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [list, HistoryFailed, list]


async def test_a_rejected_command_fails_only_for_its_own_caller(redis_url: str) -> None:
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


async def test_callers_in_different_batches_receive_their_own_replies(
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
async def test_two_flushes_share_a_long_queue(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch, calls: int, sizes: list[int]
) -> None:
    started: list[int] = []
    all_started = asyncio.Event()

    async def execute_slowly(connection: AbstractConnection, request: bytes, count: int) -> Any:
        # Two of the commands are MULTI and EXEC.
        started.append(count - 2)
        if len(started) == len(sizes):
            all_started.set()
        await all_started.wait()
        return await execute_raw(connection, request, count)

    monkeypatch.setattr(command_batcher, "choose_execute", lambda: execute_slowly)
    batcher = CommandBatcher(any_redis, timeout_s=5)
    results = await asyncio.gather(
        *(batcher.transact([("ECHO", number)]) for number in range(calls))
    )
    assert results == [[b"%d" % number] for number in range(calls)]
    assert sorted(started, reverse=True) == sizes


async def test_calls_over_the_queue_limit_are_rejected_immediately(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_batcher, "MAX_WAITING_CALLS", 3)
    results = await asyncio.gather(
        *(save_messages(store, 1) for _ in range(5)), return_exceptions=True
    )
    assert [type(result) for result in results] == [list] * 3 + [HistoryUnavailable] * 2


async def test_calls_that_wait_longer_than_the_deadline_fail(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def execute_slowly(connection: AbstractConnection, request: bytes, count: int) -> Any:
        await asyncio.sleep(0.5)
        return await execute_raw(connection, request, count)

    monkeypatch.setattr(command_batcher, "choose_execute", lambda: execute_slowly)
    monkeypatch.setattr(command_batcher, "MAX_BATCH_CALLS", 1)
    monkeypatch.setattr(command_batcher, "MAX_FLUSHES", 1)
    batcher = CommandBatcher(any_redis, timeout_s=0.9)
    results = await asyncio.gather(
        *(batcher.transact([("ECHO", number)]) for number in range(6)), return_exceptions=True
    )
    # The second call is sent after 0.5 s, so its reply would arrive after one second.
    assert results[0] == [b"0"]
    assert [type(result) for result in results[1:]] == [HistoryUnavailable] * 5


async def test_a_failed_call_creates_no_reference_cycle(redis_url: str) -> None:
    async with open_redis(Settings(redis_url=redis_url)) as client:
        batcher = CommandBatcher(client, timeout_s=5)

        async def fail() -> None:
            with suppress(HistoryFailed):
                await batcher.transact([("NO-SUCH-COMMAND",)])

        await fail()
        with no_gc():
            for _ in range(50):
                await fail()
            assert gc.collect() < 50


async def test_a_batch_is_retried_although_an_earlier_batch_fails_meanwhile(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_failed = asyncio.Event()
    attempts = 0

    async def execute(connection: AbstractConnection, request: bytes, count: int) -> Any:
        nonlocal attempts
        if b"first" in request:
            raise RedisConnectionError
        attempts += 1
        if attempts == 1:
            await has_failed.wait()
            raise RedisConnectionError
        return await execute_raw(connection, request, count)

    monkeypatch.setattr(command_batcher, "choose_execute", lambda: execute)
    batcher = CommandBatcher(any_redis, timeout_s=5)
    first = batcher.transact([("ECHO", "first")])
    await asyncio.sleep(0)
    second = batcher.transact([("ECHO", "second")])
    with pytest.raises(HistoryUnavailable):
        await first
    has_failed.set()
    assert await second == [b"second"]
    assert attempts == 2
