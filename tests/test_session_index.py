"""The list of sessions: who is on it, in which order, page by page."""

import time

import pytest
from redis.asyncio import Redis

from groqchat.errors import SessionNotFound
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.storage import session_index
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message
from groqchat.storage.session_index import SessionIndex, SessionPage

INDEX = "chat:sessions"


async def speak(store: RedisChatService, *session_ids: str) -> None:
    for session_id in session_ids:
        message = Message(id=new_message_id(), role="user", content="Hello", model="m")
        await store.save_message(session_id, message)


async def test_sessions_are_listed_by_last_activity_newest_first(store: RedisChatService) -> None:
    await speak(store, "a", "b", "c", "a")

    page = await store.get_all_sessions()
    assert page == SessionPage(sessions=["a", "c", "b"], total_sessions=3, cursor=None)


async def test_no_sessions_are_an_empty_page(store: RedisChatService) -> None:
    page = await store.get_all_sessions()
    assert page == SessionPage(sessions=[], total_sessions=0, cursor=None)


async def test_pages_go_on_after_and_before_a_session(store: RedisChatService) -> None:
    await speak(store, "e", "d", "c", "b", "a")

    first = await store.get_all_sessions(limit=2)
    after = await store.get_all_sessions(limit=2, after="b")
    last = await store.get_all_sessions(limit=2, after="d")
    before = await store.get_all_sessions(limit=2, before="d")
    oldest = await store.get_all_sessions(limit=2, oldest_first=True)
    onwards = await store.get_all_sessions(limit=9, oldest_first=True, after="d")

    assert (first.sessions, first.cursor is not None) == (["a", "b"], True)
    assert (after.sessions, after.cursor is not None) == (["c", "d"], True)
    assert (last.sessions, last.cursor) == (["e"], None)
    assert (before.sessions, before.cursor is not None) == (["b", "c"], True)
    assert (oldest.sessions, oldest.cursor is not None) == (["e", "d"], True)
    assert (onwards.sessions, onwards.cursor) == (["c", "b", "a"], None)
    assert first.total_sessions == onwards.total_sessions == 5


async def test_a_cursor_keeps_its_place_while_its_session_moves_or_goes(
    store: RedisChatService,
) -> None:
    await speak(store, "f", "e", "d", "c", "b", "a")
    first = await store.get_all_sessions(limit=2)
    await speak(store, "b")
    second = await store.get_all_sessions(limit=2, after=first.cursor)
    await store.clear_session("d")
    third = await store.get_all_sessions(limit=2, after=second.cursor)

    assert (first.sessions, second.sessions, third.sessions) == (["a", "b"], ["c", "d"], ["e", "f"])
    assert third.cursor is None


async def test_sessions_of_one_moment_are_paged_without_loss(
    store: RedisChatService, any_redis: Redis
) -> None:
    names = [f"s{number:03}" for number in range(60)]
    await speak(store, *names)
    await any_redis.zadd(INDEX, dict.fromkeys(names, time.time() + 500))

    met: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.get_all_sessions(limit=7, after=cursor)
        met += page.sessions
        cursor = page.cursor
        if cursor is None:
            break
    assert met == names[::-1]


async def test_an_entry_without_its_session_is_dropped_and_removed(
    store: RedisChatService, any_redis: Redis
) -> None:
    await speak(store, "kept", "evicted", "kept-too")
    await any_redis.delete("chat:session:evicted")

    page = await store.get_all_sessions()
    assert page == SessionPage(sessions=["kept-too", "kept"], total_sessions=2, cursor=None)
    assert await any_redis.zrange(INDEX, 0, -1) == [b"kept", b"kept-too"]


async def test_a_page_is_filled_past_entries_without_sessions(
    store: RedisChatService, any_redis: Redis
) -> None:
    await speak(store, "a", "b", *(f"gone{number}" for number in range(20)))
    await any_redis.delete(*(f"chat:session:gone{number}" for number in range(20)))

    page = await store.get_all_sessions(limit=3)
    assert page == SessionPage(sessions=["b", "a"], total_sessions=2, cursor=None)


async def test_an_expired_session_is_neither_listed_nor_counted(
    store: RedisChatService, any_redis: Redis
) -> None:
    await speak(store, "alive", "expired")
    await any_redis.zadd(INDEX, {"expired": time.time() - 1})

    page = await store.get_all_sessions()
    assert page == SessionPage(sessions=["alive"], total_sessions=1, cursor=None)


async def test_a_page_from_an_unknown_session_is_refused(store: RedisChatService) -> None:
    for cursor in ("nobody", "a@warm", "a@nan"):
        with pytest.raises(SessionNotFound) as refused:
            await store.get_all_sessions(before=cursor)
        assert refused.value.param == "before"


async def test_a_page_may_lie_between_two_sessions(store: RedisChatService) -> None:
    await speak(store, *"abcdef")
    page = await store.get_all_sessions(after="e", before="b")
    assert page == SessionPage(sessions=["d", "c"], total_sessions=6, cursor=None)
    page = await store.get_all_sessions(after="b", before="e", oldest_first=True)
    assert page == SessionPage(sessions=["c", "d"], total_sessions=6, cursor=None)
    page = await store.get_all_sessions(after="e", before="a", limit=2)
    assert page.sessions == ["d", "c"]
    assert page.cursor is not None
    assert (await store.get_all_sessions(after="a", before="b")).sessions == []


async def test_pruning_removes_expired_entries_in_bounded_batches(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_index, "PRUNE_BATCH", 10)
    now = time.time()
    await any_redis.zadd(INDEX, {f"dead{number}": now - 100 + number for number in range(25)})
    await any_redis.zadd(INDEX, {"alive": now + 100, "for-ever": float("inf")})
    index = SessionIndex(any_redis)

    assert [await index.prune() for _ in range(4)] == [10, 10, 5, 0]
    assert await any_redis.zrange(INDEX, 0, -1) == [b"alive", b"for-ever"]
