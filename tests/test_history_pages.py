"""Pages of a session's history: limits, cursors and equal timestamps."""

import json
from collections.abc import Sequence
from itertools import combinations

import pytest
from redis.asyncio import Redis

from groqchat.services.history_store import HistoryStore
from groqchat.storage import history_reader
from groqchat.storage.messages import Message, encode_member
from tests.support.store import new_message, save_messages

KEY = "chat:session:s"


def ids(messages: Sequence[Message]) -> list[str]:
    return [message.id for message in messages]


async def test_a_page_contains_the_newest_messages_or_the_oldest_with_oldest_first(
    store: HistoryStore,
) -> None:
    all_messages = await save_messages(store, 7)

    newest = await store.get_history_page("s", limit=3)
    first = await store.get_history_page("s", limit=3, oldest_first=True)

    assert (newest.messages, newest.has_more) == (all_messages[4:], True)
    assert (first.messages, first.has_more) == (all_messages[:3], True)
    assert newest.message_count == first.message_count == 7
    assert newest.last_message_time == first.last_message_time == all_messages[6].timestamp


async def test_a_page_starts_after_or_ends_before_its_cursor(store: HistoryStore) -> None:
    all_messages = await save_messages(store, 7)

    after = await store.get_history_page("s", limit=2, after=all_messages[2].id)
    before = await store.get_history_page("s", limit=2, before=all_messages[2].id)
    rest = await store.get_history_page("s", limit=2, after=all_messages[4].id)
    start = await store.get_history_page("s", limit=2, before=all_messages[1].id)

    assert (after.messages, after.has_more) == (all_messages[3:5], True)
    assert (before.messages, before.has_more) == (all_messages[:2], False)
    assert (rest.messages, rest.has_more) == (all_messages[5:], False)
    assert (start.messages, start.has_more) == (all_messages[:1], False)


@pytest.mark.parametrize("forward", [True, False])
async def test_consecutive_pages_contain_each_message_once(
    store: HistoryStore,
    monkeypatch: pytest.MonkeyPatch,
    forward: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    monkeypatch.setattr(history_reader, "FIRST_CHUNK", 3)
    monkeypatch.setattr(history_reader, "MAX_CHUNK", 7)
    all_messages = await save_messages(store, 60)

    read: list[Message] = []
    page = await store.get_history_page("s", limit=11, oldest_first=forward)
    while True:
        read = [*read, *page.messages] if forward else [*page.messages, *read]
        if not page.has_more:
            break
        page = await store.get_history_page(
            "s",
            limit=11,
            after=read[-1].id if forward else None,
            before=None if forward else read[0].id,
        )
    assert read == all_messages


@pytest.mark.parametrize("count", [3, 50, 400])
async def test_consecutive_pages_contain_all_messages_with_equal_scores(
    store: HistoryStore, any_redis: Redis, count: int
) -> None:
    members = [json.dumps({"role": "user", "content": f"c{number}"}) for number in range(count)]
    await any_redis.zadd(KEY, dict.fromkeys(members, 1705314645))
    expected = (await store.get_history_page("s")).messages

    forwards: list[Message] = []
    backwards: list[Message] = []
    limit = max(1, count // 9)
    for _ in range(count // limit + 1):
        after = forwards[-1].id if forwards else None
        before = backwards[0].id if backwards else None
        forwards += (
            await store.get_history_page("s", limit=limit, after=after, oldest_first=True)
        ).messages
        backwards[:0] = (await store.get_history_page("s", limit=limit, before=before)).messages

    assert sorted(each.content for each in expected) == sorted(f"c{n}" for n in range(count))
    assert ids(forwards) == ids(backwards) == ids(expected)


async def test_a_deleted_message_is_still_a_valid_cursor(
    store: HistoryStore, any_redis: Redis
) -> None:
    all_messages = await save_messages(store, 5)
    await any_redis.zrem(KEY, encode_member(all_messages[2]))

    after = await store.get_history_page("s", after=all_messages[2].id)
    before = await store.get_history_page("s", before=all_messages[2].id)

    assert (after.messages, before.messages) == (all_messages[3:], all_messages[:2])


async def test_a_page_of_long_messages_ends_early_with_has_more(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_reader, "FIRST_CHUNK", 2)
    monkeypatch.setattr(history_reader, "CHUNK_BYTES", 2100)
    monkeypatch.setattr(history_reader, "MAX_PAGE_BYTES", 3000)
    all_messages = [new_message("x" * 1000) for _ in range(9)]
    await store.save_messages("s", *all_messages)

    page = await store.get_history_page("s")
    assert (page.messages, page.has_more, page.message_count) == (all_messages[7:], True, 9)


async def test_after_and_before_together_limit_a_page(store: HistoryStore) -> None:
    messages = await save_messages(store, 6)
    first, last = messages[1].id, messages[4].id
    page = await store.get_history_page("s", after=first, before=last)
    assert (page.messages, page.has_more) == (messages[2:4], False)
    page = await store.get_history_page("s", after=first, before=last, limit=1)
    assert (page.messages, page.has_more) == (messages[2:3], True)
    assert (await store.get_history_page("s", after=last, before=first)).messages == []
    page = await store.get_history_page("s", after=first, before=last, limit=2)
    assert (page.messages, page.has_more) == (messages[2:4], False)


async def test_after_and_before_work_among_equal_scores(
    store: HistoryStore, any_redis: Redis
) -> None:
    members = {f'{{"role":"user","content":"{number}"}}': 1705314645.5 for number in range(6)}
    await any_redis.zadd(KEY, members)
    message_ids = ids((await store.get_history_page("s")).messages)
    for first, last in combinations(range(6), 2):
        page = await store.get_history_page("s", after=message_ids[first], before=message_ids[last])
        assert ids(page.messages) == message_ids[first + 1 : last]
        assert page.has_more is False


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("count", [1, 7, 8, 20])
async def test_pages_of_long_messages_end_at_8_mib_with_an_exact_has_more(
    store: HistoryStore, *, oldest_first: bool, count: int
) -> None:
    # Seven of these fit into 8 MiB, eight do not.
    all_messages = [new_message("x" * 1_150_000) for _ in range(count)]
    await store.save_messages("s", *all_messages)

    pages = [await store.get_history_page("s", oldest_first=oldest_first)]
    while pages[-1].has_more:
        after = pages[-1].last_id if oldest_first else None
        before = None if oldest_first else pages[-1].first_id
        pages.append(await store.get_history_page("s", after=after, before=before))

    expected = [7] * (count // 7) + [count % 7] * (count % 7 > 0)
    assert [len(page.messages) for page in pages] == expected
    ordered = pages if oldest_first else pages[::-1]
    assert [message for page in ordered for message in page.messages] == all_messages


async def test_a_window_of_long_messages_ends_with_an_exact_has_more(store: HistoryStore) -> None:
    all_messages = [new_message("x" * 1_150_000) for _ in range(9)]
    await store.save_messages("s", *all_messages)
    first = all_messages[0].id
    page = await store.get_history_page("s", after=first, before=all_messages[8].id)
    assert (page.messages, page.has_more) == (all_messages[1:8], False)
    page = await store.get_history_page("s", after=first)
    assert (page.messages, page.has_more) == (all_messages[1:8], True)


async def test_a_message_beyond_8_mib_has_a_page_of_its_own(store: HistoryStore) -> None:
    messages = [new_message("x" * size) for size in (10, 9_000_000, 10)]
    await store.save_messages("s", *messages)
    page = await store.get_history_page("s", oldest_first=True)
    assert (page.messages, page.has_more) == (messages[:1], True)
    page = await store.get_history_page("s", after=page.last_id)
    assert (page.messages, page.has_more) == (messages[1:2], True)
