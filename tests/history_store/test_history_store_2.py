"""The history store: the commands that it sends, repeated saves, partial failures."""

from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from groqchat.services.redis_chat_service import (
    HistoryPage,
    RedisChatService,
)
from groqchat.storage.messages import FAILED, INCOMPLETE, encode_member
from tests.history_store.conftest import (
    INDEX,
    KEY,
    RecordingBatcher,
    new_answer,
    numbered,
    read_page,
    stored,
)
from tests.support.store import new_message


async def test_the_answer_to_a_deleted_message_is_not_saved(
    history: RedisChatService, fake_redis: FakeAsyncRedis
) -> None:
    answer = new_answer("Hi")
    assert await history.try_save("s", answer, user_message=new_message("Hello")) is False
    assert await fake_redis.keys() == []


async def test_the_remaining_messages_stay_in_the_session_and_the_index(
    history: RedisChatService, batcher: RecordingBatcher, fake_redis: FakeAsyncRedis
) -> None:
    first, second, third = numbered(3)
    await history.save_message("s", first, second, third)
    batcher.transactions.clear()
    await history.remove_messages("s", [first, third])
    assert batcher.names == [["ZREM", "EXISTS"]]
    assert await stored(history) == [second]
    assert await fake_redis.zscore(INDEX, "s") is not None


async def test_a_session_without_messages_leaves_the_index(
    history: RedisChatService, fake_redis: FakeAsyncRedis
) -> None:
    messages = numbered(2)
    await history.save_message("s", *messages)
    await history.save_message("other", *messages)
    await history.remove_messages("s", messages)
    assert await fake_redis.zrange(INDEX, 0, -1) == [b"other"]
    assert sorted(await fake_redis.keys()) == [b"chat:session:other", INDEX.encode()]


async def test_a_session_that_is_created_again_meanwhile_is_listed(
    history: RedisChatService, batcher: RecordingBatcher, fake_redis: FakeAsyncRedis
) -> None:
    old = new_message("old")
    await history.save_message("s", old)

    async def create_again(number: int) -> None:
        if number == 3:
            await fake_redis.zadd(KEY, {encode_member(new_message("new")): 1})

    batcher.before = create_again
    await history.remove_messages("s", [old])
    assert await fake_redis.zrange(INDEX, 0, -1) == [b"s"]


@pytest.mark.parametrize(
    ("role", "status", "is_removed"),
    [
        ("assistant", INCOMPLETE, True),
        ("assistant", None, False),
        ("assistant", FAILED, False),
        ("tool", INCOMPLETE, False),
    ],
)
async def test_only_an_incomplete_answer_right_after_the_user_message_is_dropped(
    history: RedisChatService,
    role: Any,
    status: str | None,
    is_removed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    before = new_answer("before", status=INCOMPLETE)
    user_message = new_message("Hello")
    fields = {} if status is None else {"status": status}
    following = new_message("Hi", role, finish_reason="length", **fields)
    later = new_answer("later", status=INCOMPLETE)
    await history.save_message("s", before, user_message, following, later)
    await history.drop_incomplete_answer("s", user_message)
    rest = [] if is_removed else [following]
    assert await stored(history) == [before, user_message, *rest, later]


async def test_a_corrupt_member_after_the_user_message_stays(
    history: RedisChatService, fake_redis: FakeAsyncRedis
) -> None:
    user_message = new_message("Hello")
    await history.save_message("s", user_message)
    await fake_redis.zadd(KEY, {"corrupt": user_message.score + 1})
    await history.drop_incomplete_answer("s", user_message)
    assert await history.get_session_size("s") == 2


async def test_without_a_following_message_nothing_is_dropped(
    history: RedisChatService, batcher: RecordingBatcher
) -> None:
    await history.drop_incomplete_answer("s", new_message("Hello"))
    assert batcher.names == [["ZRANGE"]]


async def test_clearing_a_session_is_one_transaction(
    history: RedisChatService, batcher: RecordingBatcher
) -> None:
    await history.clear_session("s")
    assert batcher.transactions == [[("UNLINK", KEY), ("ZREM", INDEX, "s")]]


async def test_pages_start_after_and_end_before_a_message(history: RedisChatService) -> None:
    messages = numbered(6)
    ids = [message.id for message in messages]
    await history.save_message("s", *messages)
    names = [message.content for message in messages]
    assert await read_page(history) == (names, False)
    assert await read_page(history, limit=6) == (names, False)
    assert await read_page(history, limit=2) == (names[4:], True)
    assert await read_page(history, limit=2, oldest_first=True) == (names[:2], True)
    assert await read_page(history, limit=2, after=ids[1]) == (names[2:4], True)
    assert await read_page(history, limit=4, after=ids[1]) == (names[2:], False)
    assert await read_page(history, limit=2, before=ids[4]) == (names[2:4], True)
    assert await read_page(history, limit=4, before=ids[4]) == (names[:4], False)
    # With `before`, the page always ends right before the message.
    before = {"before": ids[4], "oldest_first": True}
    assert await read_page(history, limit=2, **before) == (names[2:4], True)


@pytest.mark.parametrize(
    ("limit", "end", "expected", "has_more"),
    [
        (9, 4, [2, 3], False),
        (2, 4, [2, 3], False),
        (1, 4, [2], True),
        (9, 2, [], False),
        (1, 2, [], False),
        (3, 5, [2, 3, 4], False),
        (2, 5, [2, 3], True),
    ],
)
async def test_a_page_between_two_messages_contains_only_those_between(
    history: RedisChatService,
    limit: int,
    end: int,
    expected: list[int],
    has_more: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    messages = numbered(6)
    await history.save_message("s", *messages)
    contents, more = await read_page(
        history, limit=limit, after=messages[1].id, before=messages[end].id
    )
    assert (contents, more) == ([f"m{number}" for number in expected], has_more)


async def test_a_page_of_corrupt_members_has_their_ids(
    history: RedisChatService,
    fake_redis: FakeAsyncRedis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await fake_redis.zadd(KEY, {"corrupt": 1, "broken": 2.5})
    page = await history.get_session_history("s")
    assert page == HistoryPage(
        messages=[],
        message_count=2,
        last_message_time="1970-01-01T00:00:02.500000+00:00",
        has_more=False,
        first_id=page.first_id,
        last_id=page.last_id,
    )
    assert (page.first_id or "")[:13] == f"{1_000_000:013x}"
    assert (page.last_id or "")[:13] == f"{2_500_000:013x}"
    assert caplog.messages == ["skipped 2 corrupt member(s) of session s"]
