"""The history store: deadlines, if Redis does not reply."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import Redis

from groqchat.errors import HistoryUnavailable
from groqchat.services.history_store import HistoryStore
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.messages import FIRST_CONTEXT, Message
from tests.support.recording_batcher import RecordingBatcher
from tests.support.store import new_message
from tests.support.turn_workers import new_claim

TTL_S = 1000
KEY = "chat:session:s"


@pytest.fixture
async def fake_redis() -> AsyncIterator[FakeAsyncRedis]:
    """An empty database of fakeredis."""
    async with FakeAsyncRedis(server=FakeServer()) as client:
        yield client


@pytest.fixture
async def batcher(fake_redis: FakeAsyncRedis) -> RecordingBatcher:
    """A command batcher on `fake_redis`."""
    return RecordingBatcher(fake_redis)


@pytest.fixture
async def silent_redis(tmp_path: Path) -> AsyncIterator[Redis]:
    """A client of a server that accepts connections and never replies."""
    is_over = asyncio.Event()

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await is_over.wait()
        writer.close()

    path = str(tmp_path / "redis.sock")
    async with (
        await asyncio.start_unix_server(ignore, path),
        Redis(unix_socket_path=path, protocol=2) as client,
    ):
        yield client
        is_over.set()


def numbered(count: int) -> list[Message]:
    return [new_message(f"m{number}") for number in range(count)]


async def test_every_operation_ends_within_its_deadline_if_redis_does_not_reply(
    silent_redis: Redis,
) -> None:
    async with CommandBatcher(silent_redis, timeout_s=5) as batcher:
        store = HistoryStore(silent_redis, batcher, ttl_s=TTL_S, timeout_s=0.05)
        started = time.monotonic()
        is_connected, *errors = await asyncio.gather(
            store.is_connected(),
            store.find_turn("s", ["0" * 17], new_claim()),
            store.get_history_page("s"),
            store.clear_session("s"),
            store.get_session_size("s"),
            store.get_session_info("s"),
            store.get_sessions_page(),
            return_exceptions=True,
        )
        assert time.monotonic() - started < 4
    assert is_connected is False
    assert [type(error) for error in errors] == [HistoryUnavailable] * 6


async def test_a_removal_ends_within_its_deadline_if_the_index_does_not_reply(
    silent_redis: Redis, batcher: RecordingBatcher
) -> None:
    store = HistoryStore(silent_redis, batcher, ttl_s=TTL_S, timeout_s=0.05)
    message = new_message("Hello")
    await store.save_messages("s", message)
    with pytest.raises(HistoryUnavailable):
        await asyncio.wait_for(store.remove_messages("s", [message]), 5)
    assert batcher.names[1:] == [["EVAL"], ["ZREM"]]


async def test_a_long_context_is_shortened_if_its_read_does_not_end_within_the_deadline(
    fake_redis: FakeAsyncRedis, batcher: RecordingBatcher
) -> None:
    store = HistoryStore(fake_redis, batcher, ttl_s=TTL_S, timeout_s=0.05)
    earlier = numbered(FIRST_CONTEXT + 5)
    await store.save_messages("s", *earlier)

    async def hang_after_the_save(number: int) -> None:
        if number > 2:
            await asyncio.Event().wait()

    batcher.before = hang_after_the_save
    context = await asyncio.wait_for(store.save_messages("s", new_message("new"), context=500), 5)
    latest = earlier[-FIRST_CONTEXT:]
    assert [message["content"] for message in context] == [message.content for message in latest]
    assert await fake_redis.zcard(KEY) == FIRST_CONTEXT + 6
