"""The history store, on fakeredis and on real servers."""

import asyncio
import json
import time

import pytest
from redis.asyncio import Redis

from groqchat.errors import HistoryUnavailable, SessionCleared
from groqchat.services.history_store import HistoryStore
from groqchat.storage.history_reader import HistoryPage
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message
from groqchat.storage.session_info import SessionInfo
from tests.support.store import MODEL, TTL_S, new_message, new_store, save_messages

KEY = "chat:session:s"


async def test_messages_are_returned_complete_and_in_order(store: HistoryStore) -> None:
    user_message = new_message("What is Python?")
    answer = Message(
        id=new_message_id(),
        role="assistant",
        content="A language.\u2028\U0001f40d",
        model="llama-3.1-8b-instant",
        tokens=12,
        finish_reason="length",
    )
    await store.save_messages("s", user_message)
    await store.save_messages("s", answer)

    assert await store.get_history_page("s") == HistoryPage(
        messages=[user_message, answer],
        message_count=2,
        last_message_time=answer.timestamp,
        has_more=False,
        first_id=user_message.id,
        last_id=answer.id,
    )
    assert await store.get_session_size("s") == 2


async def test_equal_messages_are_separate_and_a_repeated_save_is_stored_once(
    store: HistoryStore,
) -> None:
    first, second = new_message("equal"), new_message("equal")
    for each in (first, second, first, second):
        await store.save_messages("s", each)

    assert (await store.get_history_page("s")).messages == [first, second]


async def test_a_save_returns_the_earlier_messages(store: HistoryStore) -> None:
    earlier = await save_messages(store, 5)

    assert await store.save_messages("s", new_message("new"), context=3) == [
        {"role": each.role, "content": each.content} for each in earlier[2:]
    ]
    assert await store.save_messages("fresh", new_message("new"), context=3) == []


async def test_members_are_compact_json_with_their_time_as_score(
    store: HistoryStore, any_redis: Redis
) -> None:
    user_message = new_message("What is Python?")
    answer = Message(
        id=new_message_id(), role="assistant", content="A language.", model="m", tokens=3
    )
    await store.save_messages("s", user_message, answer)

    assert await any_redis.zrange(KEY, 0, -1, withscores=True) == [
        (
            f'{{"id":"{user_message.id}","role":"user","content":"What is Python?"}}'.encode(),
            int(user_message.id[:13], 16) / 1e6,
        ),
        (
            f'{{"id":"{answer.id}","role":"assistant","content":"A language.",'
            '"model":"m","tokens":3}'.encode(),
            int(answer.id[:13], 16) / 1e6,
        ),
    ]


async def test_every_write_renews_the_ttl_of_the_session(
    store: HistoryStore, any_redis: Redis
) -> None:
    await save_messages(store, 1)
    await any_redis.expire(KEY, 10)
    await save_messages(store, 1)

    assert TTL_S - 5 <= await any_redis.ttl(KEY) <= TTL_S
    score = await any_redis.zscore("chat:sessions", "s")
    assert score == pytest.approx(time.time() + TTL_S, abs=5)


async def test_the_ttl_is_set_in_the_transaction_that_writes_the_message(
    redis: Redis,
) -> None:
    store = new_store(redis)
    async with redis.monitor() as monitor:
        await store.save_messages("s", new_message("Hello"), context=2)
        names: list[str] = []
        while "EXEC" not in names:
            names.append((await monitor.next_command())["command"].split(" ")[0])
    start = names.index("MULTI")
    assert names[start:] == ["MULTI", "ZRANGE", "ZADD", "EXPIRE", "ZADD", "EXEC"]


async def test_members_in_the_format_of_the_specification_are_read(
    store: HistoryStore, any_redis: Redis
) -> None:
    members = [
        {
            "role": role,
            "content": content,
            "model": "openai/gpt-oss-20b",
            "timestamp": "2024-01-15T10:30:45.123456",
        }
        for role, content in (("user", "What is Python?"), ("assistant", "A language."))
    ]
    for offset, member in enumerate(members):
        await any_redis.zadd(KEY, {json.dumps(member): 1705314645.123456 + offset})
    new = new_message("And Rust?")
    context = await store.save_messages("s", new, context=10)
    page = await store.get_history_page("s")
    earlier = page.messages[:2]

    assert context == [
        {"role": "user", "content": "What is Python?"},
        {"role": "assistant", "content": "A language."},
    ]
    assert [(old.role, old.content, old.model, old.timestamp) for old in earlier] == [
        ("user", "What is Python?", MODEL, "2024-01-15T10:30:45.123456+00:00"),
        ("assistant", "A language.", MODEL, "2024-01-15T10:30:46.123456+00:00"),
    ]
    assert page.messages == [*earlier, new]
    assert (await store.get_history_page("s", after=earlier[0].id)).messages == [
        earlier[1],
        new,
    ]


async def test_an_unknown_session_is_empty(store: HistoryStore) -> None:
    assert await store.get_history_page("unknown") == HistoryPage(
        messages=[],
        message_count=0,
        last_message_time=None,
        has_more=False,
        first_id=None,
        last_id=None,
    )
    assert await store.get_session_size("unknown") == 0
    assert await store.get_session_info("unknown") is None
    await store.clear_session("unknown")


# The deletion itself, for workers and for commands that Redis executes late.
AFTER_DELETION = [b"chat:stops", b"{chat:session:s}:deleted"]


async def test_clearing_a_session_deletes_all_its_keys(
    store: HistoryStore, any_redis: Redis
) -> None:
    await save_messages(store, 3)
    await store.clear_session("s")

    assert sorted(await any_redis.keys("*")) == AFTER_DELETION


async def test_session_info_contains_count_times_and_expiry(
    store: HistoryStore, any_redis: Redis
) -> None:
    first, *_, last = await save_messages(store, 3)
    info = await store.get_session_info("s")
    await any_redis.persist(KEY)
    persistent = await store.get_session_info("s")

    assert info is not None
    assert info.expires_at is not None
    assert info.ttl_seconds is not None
    assert TTL_S - 10 <= info.ttl_seconds <= TTL_S
    assert info == SessionInfo(
        session_id="s",
        message_count=3,
        first_message_time=first.timestamp,
        last_message_time=last.timestamp,
        expires_at=info.expires_at,
        ttl_seconds=info.ttl_seconds,
    )
    assert persistent is not None
    assert (persistent.expires_at, persistent.ttl_seconds) == (None, None)


async def test_concurrent_saves_are_all_stored(store: HistoryStore) -> None:
    messages = [new_message(f"m{number}") for number in range(90)]
    await asyncio.gather(*(store.save_messages("s", each) for each in messages))

    assert (await store.get_history_page("s")).messages == messages


async def test_an_answer_is_not_stored_if_its_user_message_was_deleted(
    store: HistoryStore, any_redis: Redis
) -> None:
    user_message, answer = new_message("Hello"), new_message("Hi", "assistant")
    await store.save_messages("s", user_message)
    await store.clear_session("s")
    with pytest.raises(SessionCleared):
        await store.save_messages("s", answer, user_message=user_message)
    assert sorted(await any_redis.keys("*")) == AFTER_DELETION

    [new] = await save_messages(store, 1)
    with pytest.raises(SessionCleared):
        await store.save_messages("s", answer, user_message=user_message)
    assert (await store.get_history_page("s")).messages == [new]


async def test_without_a_server_the_store_is_not_connected_and_saves_fail() -> None:
    async with Redis(unix_socket_path="/nowhere/redis.sock") as client:
        store = new_store(client, timeout_s=1)
        assert await store.is_connected() is False
        with pytest.raises(HistoryUnavailable):
            await store.save_messages("s", new_message("Hello"))


async def test_a_store_with_a_server_is_connected(store: HistoryStore) -> None:
    assert await store.is_connected() is True
