"""The history store, on every kind of server that speaks Redis' protocol."""

import asyncio
import json
import time
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from groqchat.errors import HistoryUnavailable, SessionCleared
from groqchat.services.redis_chat_service import HistoryPage, RedisChatService, SessionInfo
from groqchat.storage import history_reader
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message, Role, encode_member
from tests.support.store import TTL_S, new_store

KEY = "chat:session:s"
MODEL = "openai/gpt-oss-20b"


def message(content: str, role: Role = "user", **fields: str) -> Message:
    return Message(id=new_message_id(), role=role, content=content, model=MODEL, **fields)  # type: ignore[arg-type] # only text fields are passed


async def saved(store: RedisChatService, count: int, session_id: str = "s") -> list[Message]:
    messages = [message(f"m{number}") for number in range(count)]
    await store.save_message(session_id, *messages)
    return messages


def ids(messages: Sequence[Message]) -> list[str]:
    return [each.id for each in messages]


async def test_messages_come_back_whole_and_in_order(store: RedisChatService) -> None:
    question = message("What is Python?")
    answer = Message(
        id=new_message_id(),
        role="assistant",
        content="A language.\u2028\U0001f40d",
        model="llama-3.1-8b-instant",
        tokens=12,
        finish_reason="length",
    )
    await store.save_message("s", question)
    await store.save_message("s", answer)

    assert await store.get_session_history("s") == HistoryPage(
        messages=[question, answer],
        message_count=2,
        last_message_time=answer.timestamp,
        has_more=False,
        first_id=question.id,
        last_id=answer.id,
    )
    assert await store.get_session_size("s") == 2


async def test_two_equal_messages_stay_two_and_a_repeated_save_stays_one(
    store: RedisChatService,
) -> None:
    first, second = message("again"), message("again")
    for each in (first, second, first, second):
        await store.save_message("s", each)

    assert (await store.get_session_history("s")).messages == [first, second]


async def test_saving_gives_the_messages_that_stood_before(store: RedisChatService) -> None:
    earlier = await saved(store, 5)

    assert await store.save_message("s", message("new"), context=3) == [
        {"role": each.role, "content": each.content} for each in earlier[2:]
    ]
    assert await store.save_message("fresh", message("new"), context=3) == []


async def test_members_are_compact_json_scored_by_time(
    store: RedisChatService, any_redis: Redis
) -> None:
    question = message("What is Python?")
    answer = Message(
        id=new_message_id(), role="assistant", content="A language.", model="m", tokens=3
    )
    await store.save_message("s", question, answer)

    assert await any_redis.zrange(KEY, 0, -1, withscores=True) == [
        (
            f'{{"id":"{question.id}","role":"user","content":"What is Python?"}}'.encode(),
            int(question.id[:13], 16) / 1e6,
        ),
        (
            f'{{"id":"{answer.id}","role":"assistant","content":"A language.",'
            '"model":"m","tokens":3}'.encode(),
            int(answer.id[:13], 16) / 1e6,
        ),
    ]


async def test_every_write_renews_the_sessions_life(
    store: RedisChatService, any_redis: Redis
) -> None:
    await saved(store, 1)
    await any_redis.expire(KEY, 10)
    await saved(store, 1)

    assert TTL_S - 5 <= await any_redis.ttl(KEY) <= TTL_S
    score = await any_redis.zscore("chat:sessions", "s")
    assert score == pytest.approx(time.time() + TTL_S, abs=5)


async def test_a_members_time_to_live_is_set_in_the_transaction_that_writes_it(
    redis: Redis,
) -> None:
    store = new_store(redis)
    async with redis.monitor() as monitor:
        await store.save_message("s", message("Hello"), context=2)
        seen: list[str] = []
        while "EXEC" not in seen:
            seen.append((await monitor.next_command())["command"].split(" ")[0])
    begin = seen.index("MULTI")
    assert seen[begin:] == ["MULTI", "ZRANGE", "ZADD", "EXPIRE", "ZADD", "EXEC"]


async def test_members_of_the_specifications_own_service_are_read(
    store: RedisChatService, any_redis: Redis
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
    new = message("And Rust?")
    spoken = await store.save_message("s", new, context=10)
    page = await store.get_session_history("s")
    earlier = page.messages[:2]

    assert spoken == [
        {"role": "user", "content": "What is Python?"},
        {"role": "assistant", "content": "A language."},
    ]
    assert [(old.role, old.content, old.model, old.timestamp) for old in earlier] == [
        ("user", "What is Python?", MODEL, "2024-01-15T10:30:45.123456+00:00"),
        ("assistant", "A language.", MODEL, "2024-01-15T10:30:46.123456+00:00"),
    ]
    assert page.messages == [*earlier, new]
    assert (await store.get_session_history("s", after=earlier[0].id)).messages == [
        earlier[1],
        new,
    ]


async def test_the_newest_page_is_given_unless_the_first_is_asked_for(
    store: RedisChatService,
) -> None:
    all_messages = await saved(store, 7)

    newest = await store.get_session_history("s", limit=3)
    first = await store.get_session_history("s", limit=3, oldest_first=True)

    assert (newest.messages, newest.has_more) == (all_messages[4:], True)
    assert (first.messages, first.has_more) == (all_messages[:3], True)
    assert newest.message_count == first.message_count == 7
    assert newest.last_message_time == first.last_message_time == all_messages[6].timestamp


async def test_pages_go_on_after_and_before_a_message(store: RedisChatService) -> None:
    all_messages = await saved(store, 7)

    after = await store.get_session_history("s", limit=2, after=all_messages[2].id)
    before = await store.get_session_history("s", limit=2, before=all_messages[2].id)
    rest = await store.get_session_history("s", limit=2, after=all_messages[4].id)
    start = await store.get_session_history("s", limit=2, before=all_messages[1].id)

    assert (after.messages, after.has_more) == (all_messages[3:5], True)
    assert (before.messages, before.has_more) == (all_messages[:2], False)
    assert (rest.messages, rest.has_more) == (all_messages[5:], False)
    assert (start.messages, start.has_more) == (all_messages[:1], False)


@pytest.mark.parametrize("forward", [True, False])
async def test_a_walk_through_many_pages_meets_each_message_once(
    store: RedisChatService,
    monkeypatch: pytest.MonkeyPatch,
    forward: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    monkeypatch.setattr(history_reader, "FIRST_CHUNK", 3)
    monkeypatch.setattr(history_reader, "MAX_CHUNK", 7)
    all_messages = await saved(store, 60)

    met: list[Message] = []
    page = await store.get_session_history("s", limit=11, oldest_first=forward)
    while True:
        met = [*met, *page.messages] if forward else [*page.messages, *met]
        if not page.has_more:
            break
        page = await store.get_session_history(
            "s",
            limit=11,
            after=met[-1].id if forward else None,
            before=None if forward else met[0].id,
        )
    assert met == all_messages


@pytest.mark.parametrize("count", [3, 50, 400])
async def test_members_of_one_moment_are_paged_without_loss(
    store: RedisChatService, any_redis: Redis, count: int
) -> None:
    members = [json.dumps({"role": "user", "content": f"c{number}"}) for number in range(count)]
    await any_redis.zadd(KEY, dict.fromkeys(members, 1705314645))
    whole = (await store.get_session_history("s")).messages

    forwards: list[Message] = []
    backwards: list[Message] = []
    limit = max(1, count // 9)
    for _ in range(count // limit + 1):
        after = forwards[-1].id if forwards else None
        before = backwards[0].id if backwards else None
        forwards += (
            await store.get_session_history("s", limit=limit, after=after, oldest_first=True)
        ).messages
        backwards[:0] = (await store.get_session_history("s", limit=limit, before=before)).messages

    assert sorted(each.content for each in whole) == sorted(f"c{n}" for n in range(count))
    assert ids(forwards) == ids(backwards) == ids(whole)


async def test_a_page_goes_on_from_a_message_that_is_gone(
    store: RedisChatService, any_redis: Redis
) -> None:
    all_messages = await saved(store, 5)
    await any_redis.zrem(KEY, encode_member(all_messages[2]))

    after = await store.get_session_history("s", after=all_messages[2].id)
    before = await store.get_session_history("s", before=all_messages[2].id)

    assert (after.messages, before.messages) == (all_messages[3:], all_messages[:2])


async def test_a_page_of_long_messages_ends_early_and_says_so(
    store: RedisChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_reader, "FIRST_CHUNK", 2)
    monkeypatch.setattr(history_reader, "CHUNK_BYTES", 2100)
    monkeypatch.setattr(history_reader, "MAX_PAGE_BYTES", 3000)
    all_messages = [message("x" * 1000) for _ in range(9)]
    await store.save_message("s", *all_messages)

    page = await store.get_session_history("s")
    assert (page.messages, page.has_more, page.message_count) == (all_messages[6:], True, 9)


async def test_an_unknown_session_is_empty(store: RedisChatService) -> None:
    assert await store.get_session_history("nobody") == HistoryPage(
        messages=[],
        message_count=0,
        last_message_time=None,
        has_more=False,
        first_id=None,
        last_id=None,
    )
    assert await store.get_session_size("nobody") == 0
    assert await store.get_session_info("nobody") is None
    await store.clear_session("nobody")


async def test_a_cleared_session_leaves_nothing_behind(
    store: RedisChatService, any_redis: Redis
) -> None:
    await saved(store, 3)
    await store.clear_session("s")

    assert await any_redis.keys("*") == []


async def test_info_tells_counts_times_and_expiry(
    store: RedisChatService, any_redis: Redis
) -> None:
    first, *_, last = await saved(store, 3)
    info = await store.get_session_info("s")
    await any_redis.persist(KEY)
    lasting = await store.get_session_info("s")

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
    assert lasting is not None
    assert (lasting.expires_at, lasting.ttl_seconds) == (None, None)


async def test_many_writers_at_once_lose_nothing(store: RedisChatService) -> None:
    messages = [message(f"m{number}") for number in range(90)]
    await asyncio.gather(*(store.save_message("s", each) for each in messages))

    assert (await store.get_session_history("s")).messages == messages


async def test_an_answer_whose_question_was_deleted_is_not_kept(
    store: RedisChatService, any_redis: Redis
) -> None:
    question, answer = message("Hello"), message("Hi", "assistant")
    await store.save_message("s", question)
    await store.clear_session("s")
    with pytest.raises(SessionCleared):
        await store.save_message("s", answer, user_message=question)
    assert await any_redis.keys("*") == []

    [new] = await saved(store, 1)
    with pytest.raises(SessionCleared):
        await store.save_message("s", answer, user_message=question)
    assert (await store.get_session_history("s")).messages == [new]


async def test_a_store_without_a_server_says_so() -> None:
    async with Redis(unix_socket_path="/nowhere/redis.sock") as client:
        store = new_store(client, timeout_s=1)
        assert await store.is_connected() is False
        with pytest.raises(HistoryUnavailable):
            await store.save_message("s", message("Hello"))


async def test_a_store_with_a_server_is_connected(store: RedisChatService) -> None:
    assert await store.is_connected() is True
