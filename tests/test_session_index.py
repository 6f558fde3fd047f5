"""The session index: its entries, their order, and its pages."""

import time

import pytest
from redis.asyncio import Redis

from groqchat.errors import SessionNotFound
from groqchat.services.history_store import HistoryStore
from groqchat.storage import session_index
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message
from groqchat.storage.session_index import SessionIndex, SessionPage

INDEX = "chat:sessions"


async def save_in(store: HistoryStore, *session_ids: str) -> None:
    for session_id in session_ids:
        message = Message(id=new_message_id(), role="user", content="Hello", model="m")
        await store.save_messages(session_id, message)


async def test_sessions_are_listed_by_last_activity_newest_first(store: HistoryStore) -> None:
    await save_in(store, "a", "b", "c", "a")

    page = await store.get_sessions_page()
    assert page == SessionPage(sessions=["a", "c", "b"], total_sessions=3, cursor=None)


async def test_without_sessions_the_page_is_empty(store: HistoryStore) -> None:
    page = await store.get_sessions_page()
    assert page == SessionPage(sessions=[], total_sessions=0, cursor=None)


async def test_a_page_starts_after_or_ends_before_its_cursor(store: HistoryStore) -> None:
    await save_in(store, "e", "d", "c", "b", "a")

    first = await store.get_sessions_page(limit=2)
    after = await store.get_sessions_page(limit=2, after="b")
    last = await store.get_sessions_page(limit=2, after="d")
    before = await store.get_sessions_page(limit=2, before="d")
    oldest = await store.get_sessions_page(limit=2, oldest_first=True)
    newer = await store.get_sessions_page(limit=9, oldest_first=True, after="d")

    assert (first.sessions, first.cursor is not None) == (["a", "b"], True)
    assert (after.sessions, after.cursor is not None) == (["c", "d"], True)
    assert (last.sessions, last.cursor) == (["e"], None)
    assert (before.sessions, before.cursor is not None) == (["b", "c"], True)
    assert (oldest.sessions, oldest.cursor is not None) == (["e", "d"], True)
    assert (newer.sessions, newer.cursor) == (["c", "b", "a"], None)
    assert first.total_sessions == newer.total_sessions == 5


async def test_a_cursor_stays_valid_after_its_session_moves_or_is_deleted(
    store: HistoryStore,
) -> None:
    await save_in(store, "f", "e", "d", "c", "b", "a")
    first = await store.get_sessions_page(limit=2)
    await save_in(store, "b")
    second = await store.get_sessions_page(limit=2, after=first.cursor)
    await store.clear_session("d")
    third = await store.get_sessions_page(limit=2, after=second.cursor)

    assert (first.sessions, second.sessions, third.sessions) == (["a", "b"], ["c", "d"], ["e", "f"])
    assert third.cursor is None


async def test_consecutive_pages_contain_all_sessions_with_equal_scores(
    store: HistoryStore, any_redis: Redis
) -> None:
    names = [f"s{number:03}" for number in range(60)]
    await save_in(store, *names)
    await any_redis.zadd(INDEX, dict.fromkeys(names, time.time() + 500))

    listed: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.get_sessions_page(limit=7, after=cursor)
        listed += page.sessions
        cursor = page.cursor
        if cursor is None:
            break
    assert listed == names[::-1]


async def test_an_entry_without_a_session_is_not_listed_and_is_removed(
    store: HistoryStore, any_redis: Redis
) -> None:
    await save_in(store, "first", "evicted", "second")
    await any_redis.delete("chat:session:evicted")

    page = await store.get_sessions_page()
    assert page == SessionPage(sessions=["second", "first"], total_sessions=2, cursor=None)
    assert await any_redis.zrange(INDEX, 0, -1) == [b"first", b"second"]


async def test_a_page_reads_past_entries_without_sessions(
    store: HistoryStore, any_redis: Redis
) -> None:
    await save_in(store, "a", "b", *(f"deleted{number}" for number in range(20)))
    await any_redis.delete(*(f"chat:session:deleted{number}" for number in range(20)))

    page = await store.get_sessions_page(limit=3)
    assert page == SessionPage(sessions=["b", "a"], total_sessions=2, cursor=None)


async def test_an_expired_session_is_neither_listed_nor_counted(
    store: HistoryStore, any_redis: Redis
) -> None:
    await save_in(store, "alive", "expired")
    await any_redis.zadd(INDEX, {"expired": time.time() - 1})

    page = await store.get_sessions_page()
    assert page == SessionPage(sessions=["alive"], total_sessions=1, cursor=None)


async def test_an_unknown_session_as_cursor_is_rejected(store: HistoryStore) -> None:
    for cursor in ("unknown", "a@warm", "a@nan"):
        with pytest.raises(SessionNotFound) as raised:
            await store.get_sessions_page(before=cursor)
        assert raised.value.param == "before"


async def test_after_and_before_together_limit_a_page(store: HistoryStore) -> None:
    await save_in(store, *"abcdef")
    page = await store.get_sessions_page(after="e", before="b")
    assert page == SessionPage(sessions=["d", "c"], total_sessions=6, cursor=None)
    page = await store.get_sessions_page(after="b", before="e", oldest_first=True)
    assert page == SessionPage(sessions=["c", "d"], total_sessions=6, cursor=None)
    page = await store.get_sessions_page(after="e", before="a", limit=2)
    assert page.sessions == ["d", "c"]
    assert page.cursor is not None
    assert (await store.get_sessions_page(after="a", before="b")).sessions == []


async def test_pruning_removes_expired_entries_in_bounded_batches(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_index, "PRUNE_BATCH", 10)
    now = time.time()
    await any_redis.zadd(INDEX, {f"dead{number}": now - 100 + number for number in range(25)})
    await any_redis.zadd(INDEX, {"alive": now + 100, "persistent": float("inf")})
    index = SessionIndex(any_redis)

    assert [await index.prune() for _ in range(4)] == [10, 10, 5, 0]
    assert await any_redis.zrange(INDEX, 0, -1) == [b"alive", b"persistent"]
