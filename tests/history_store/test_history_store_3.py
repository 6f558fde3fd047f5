"""The history store: the commands that it sends, repeated saves, partial failures."""

import asyncio
import time
from datetime import datetime
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis

from groqchat.errors import HistoryUnavailable
from groqchat.services.redis_chat_service import (
    FIRST_CONTEXT,
    RedisChatService,
    SessionInfo,
)
from groqchat.storage.command_batcher import CommandBatcher
from tests.history_store.conftest import KEY, TTL_S, RecordingBatcher, numbered, stored
from tests.support.store import MODEL, new_message


async def test_corrupt_members_are_not_part_of_a_page_and_are_counted_in_the_log(
    history: RedisChatService, fake_redis: FakeAsyncRedis, caplog: pytest.LogCaptureFixture
) -> None:
    messages = numbered(2)
    await history.save_message("s", *messages)
    await fake_redis.zadd(KEY, {"corrupt": 1, "broken": 2, "damaged": 3})
    page = await history.get_session_history("s")
    assert (page.messages, page.message_count) == (messages, 5)
    assert (page.first_id, page.last_id) == (messages[0].id, messages[1].id)
    assert caplog.messages == ["skipped 3 corrupt member(s) of session s"]


async def test_the_size_is_the_number_of_members(history: RedisChatService) -> None:
    await history.save_message("s", *numbered(3))
    assert await history.get_session_size("s") == 3


async def test_sessions_are_listed_in_pages(history: RedisChatService) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        await history.save_message(name, new_message("Hello"))

    async def page(**options: Any) -> list[str]:
        return (await history.get_all_sessions(**options)).sessions

    assert await page() == names[::-1]
    assert await page(oldest_first=True) == names
    assert await page(limit=1) == ["d"]
    assert await page(after="c") == ["b", "a"]
    assert await page(before="c") == ["d"]
    assert await page(after="d", before="a") == ["c", "b"]


async def test_the_info_of_a_session_contains_its_times_and_its_expiry(
    history: RedisChatService, fake_redis: FakeAsyncRedis
) -> None:
    first, _, last = messages = numbered(3)
    await history.save_message("s", *messages)
    await fake_redis.pexpire(KEY, 500_700)
    before_s = datetime.fromisoformat(new_message("now").timestamp).timestamp()
    info = await history.get_session_info("s")
    after_s = datetime.fromisoformat(new_message("now").timestamp).timestamp()
    assert info is not None
    assert info == SessionInfo(
        session_id="s",
        message_count=3,
        first_message_time=first.timestamp,
        last_message_time=last.timestamp,
        expires_at=info.expires_at,
        ttl_seconds=501,
    )
    expires_at_s = datetime.fromisoformat(info.expires_at or "").timestamp()
    assert before_s + 500.5 < expires_at_s < after_s + 500.8


async def test_a_session_without_a_ttl_never_expires(
    history: RedisChatService, fake_redis: FakeAsyncRedis
) -> None:
    await fake_redis.zadd(KEY, {'{"role":"user","content":"Hello"}': 1})
    assert await history.get_session_info("s") == SessionInfo(
        session_id="s",
        message_count=1,
        first_message_time="1970-01-01T00:00:01.000000+00:00",
        last_message_time="1970-01-01T00:00:01.000000+00:00",
        expires_at=None,
        ttl_seconds=None,
    )


async def test_an_unknown_session_has_no_info(history: RedisChatService) -> None:
    assert await history.get_session_info("s") is None


@pytest.mark.parametrize("error", [ConnectionError("down"), ValueError("a bug"), None])
async def test_the_store_is_connected_if_redis_answers(
    history: RedisChatService,
    fake_redis: FakeAsyncRedis,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
) -> None:
    async def ping() -> bool:
        if error is not None:
            raise error
        return True

    monkeypatch.setattr(fake_redis, "ping", ping)
    assert await history.is_connected() is (error is None)


async def test_every_operation_ends_within_its_deadline_if_redis_does_not_reply(
    silent_redis: Redis,
) -> None:
    async with CommandBatcher(silent_redis, timeout_s=1) as batcher:
        store = RedisChatService(silent_redis, batcher, ttl_s=TTL_S, timeout_s=0.05)
        started = time.monotonic()
        is_connected, *errors = await asyncio.gather(
            store.is_connected(),
            store.drop_incomplete_answer("s", new_message("Hello")),
            store.get_session_history("s"),
            store.clear_session("s"),
            store.get_session_size("s"),
            store.get_session_info("s"),
            store.get_all_sessions(),
            return_exceptions=True,
        )
        assert time.monotonic() - started < 0.9
    assert is_connected is False
    assert [type(error) for error in errors] == [HistoryUnavailable] * 6


async def test_a_removal_ends_within_its_deadline_if_the_index_does_not_reply(
    silent_redis: Redis, batcher: RecordingBatcher
) -> None:
    store = RedisChatService(silent_redis, batcher, ttl_s=TTL_S, timeout_s=0.05)
    message = new_message("Hello")
    await store.save_message("s", message)
    with pytest.raises(HistoryUnavailable):
        await asyncio.wait_for(store.remove_messages("s", [message]), 5)
    assert batcher.names[1:] == [["ZREM", "EXISTS"], ["ZREM"]]


async def test_the_read_of_a_long_context_ends_with_the_deadline(
    fake_redis: FakeAsyncRedis, batcher: RecordingBatcher
) -> None:
    store = RedisChatService(fake_redis, batcher, ttl_s=TTL_S, timeout_s=0.05)
    await store.save_message("s", *numbered(FIRST_CONTEXT + 5))

    async def hang_after_the_save(number: int) -> None:
        if number > 2:
            await asyncio.Event().wait()

    batcher.before = hang_after_the_save
    with pytest.raises(HistoryUnavailable):
        await asyncio.wait_for(store.save_message("s", new_message("new"), context=500), 5)
    assert await fake_redis.zcard(KEY) == FIRST_CONTEXT + 6


async def test_messages_contain_their_model(history: RedisChatService) -> None:
    message = new_message("Hello")
    await history.save_message("s", message)
    assert [(each.id, each.model) for each in await stored(history)] == [(message.id, MODEL)]
