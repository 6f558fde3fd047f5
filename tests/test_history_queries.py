"""The history store: removed messages, pages, and sessions."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from groqchat.errors import TurnLost
from groqchat.services.history_store import (
    HistoryStore,
)
from groqchat.storage import keys
from groqchat.storage.event_log import EventLog
from groqchat.storage.history_reader import HistoryPage, StoredTurn
from groqchat.storage.keys import Command
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import INCOMPLETE, Message, encode_member
from groqchat.storage.session_deletion import DELETION_SCRIPT
from groqchat.storage.session_info import SessionInfo
from tests.support.recording_batcher import RecordingBatcher
from tests.support.store import new_message
from tests.support.turn_workers import new_claim

TTL_S = 1000
KEY = "chat:session:s"
INDEX = "chat:sessions"


@pytest.fixture
async def fake_redis() -> AsyncIterator[FakeAsyncRedis]:
    """An empty database of fakeredis."""
    async with FakeAsyncRedis(server=FakeServer()) as client:
        yield client


@pytest.fixture
async def batcher(fake_redis: FakeAsyncRedis) -> RecordingBatcher:
    """The command batcher of `history`."""
    return RecordingBatcher(fake_redis)


@pytest.fixture
async def history(fake_redis: FakeAsyncRedis, batcher: RecordingBatcher) -> HistoryStore:
    """A history store on `fake_redis`."""
    return HistoryStore(fake_redis, batcher, ttl_s=TTL_S, timeout_s=5)


async def stored(history: HistoryStore) -> list[Message]:
    return (await history.get_history_page("s")).messages


def new_answer(content: str, **fields: str) -> Message:
    return new_message(content, "assistant", finish_reason="stop", **fields)


def numbered(count: int) -> list[Message]:
    return [new_message(f"m{number}") for number in range(count)]


async def test_the_remaining_messages_stay_in_the_session_and_the_index(
    history: HistoryStore, batcher: RecordingBatcher, fake_redis: FakeAsyncRedis
) -> None:
    first, second, third = numbered(3)
    await history.save_messages("s", first, second, third)
    batcher.transactions.clear()
    await history.remove_messages("s", [first, third])
    assert batcher.names == [["EVAL"]]
    assert await stored(history) == [second]
    assert await fake_redis.zscore(INDEX, "s") is not None


async def test_a_session_without_messages_leaves_the_index(
    history: HistoryStore, fake_redis: FakeAsyncRedis
) -> None:
    messages = numbered(2)
    await history.save_messages("s", *messages)
    await history.save_messages("other", *messages)
    await history.remove_messages("s", messages)
    assert await fake_redis.zrange(INDEX, 0, -1) == [b"other"]
    assert sorted(await fake_redis.keys()) == [b"chat:session:other", INDEX.encode()]


async def test_a_session_that_is_created_again_meanwhile_is_listed(
    history: HistoryStore, batcher: RecordingBatcher, fake_redis: FakeAsyncRedis
) -> None:
    old = new_message("old")
    await history.save_messages("s", old)

    async def create_again(number: int) -> None:
        if number == 3:
            await fake_redis.zadd(KEY, {encode_member(new_message("new")): 1})

    batcher.before = create_again
    await history.remove_messages("s", [old])
    assert await fake_redis.zrange(INDEX, 0, -1) == [b"s"]


async def test_the_newest_attempt_at_a_turn_finds_what_earlier_ones_have_stored(
    history: HistoryStore, fake_redis: FakeAsyncRedis
) -> None:
    before = new_answer("before", status=INCOMPLETE, turn_id="0")
    user_message = new_message("Hello")
    of_other_turn = new_answer("of another turn", status=INCOMPLETE, turn_id=before.id)
    of_turn = new_answer("of the turn", status=INCOMPLETE, turn_id=user_message.id)
    complete = new_answer("complete", turn_id=user_message.id)
    await history.save_messages("s", before, user_message, of_other_turn, of_turn, complete)
    await fake_redis.zadd(KEY, {"corrupt": user_message.score + 1})
    await fake_redis.set(keys.claim_key(user_message.id), "token of a newer attempt")
    ids, claim = [user_message.id], new_claim(user_message.id)
    with pytest.raises(TurnLost):
        await history.find_turn("s", ids, claim)
    await fake_redis.delete(keys.claim_key(user_message.id))
    found = await history.find_turn("s", ids, claim)
    expected = StoredTurn([user_message], [of_turn, complete])
    assert found == expected
    assert await history.get_session_size("s") == 6


async def test_only_the_newest_attempt_at_a_turn_retains_messages(
    history: HistoryStore, fake_redis: FakeAsyncRedis
) -> None:
    message = new_message("Hello")
    await history.save_messages("s", message)
    claim = new_claim()
    await fake_redis.set(keys.claim_key(claim.turn_id), "token of a newer attempt")
    with pytest.raises(TurnLost):
        await history.retain_messages("s", [message], claim)
    assert not await fake_redis.exists(keys.retained_key("s", message.id))
    await fake_redis.delete(keys.claim_key(claim.turn_id))
    assert await history.retain_messages("s", [message], claim)
    await history.try_remove("s", message)
    assert await stored(history) == [message]


async def test_an_attempt_finds_nothing_in_one_round_trip(
    history: HistoryStore, batcher: RecordingBatcher
) -> None:
    nothing = StoredTurn(messages=[], answers=[])
    assert await history.find_turn("s", ["0" * 17], new_claim()) == nothing
    assert batcher.names == [["EVAL"]]


async def test_a_turn_that_starts_during_a_deletion_is_not_deleted(
    history: HistoryStore, batcher: RecordingBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact, started = batcher.transact, list[str]()

    async def start_afterwards(commands: Sequence[Command]) -> Any:
        replies = await transact(commands)
        started.append(new_message_id())
        return replies

    monkeypatch.setattr(batcher, "transact", start_afterwards)
    await history.clear_session("s")
    (deletion,) = (await EventLog(batcher).requests("0-0")).deletions
    assert deletion.last_turn_id < started[0]


async def test_clearing_a_session_deletes_its_messages_in_one_transaction(
    history: HistoryStore, batcher: RecordingBatcher
) -> None:
    await history.clear_session("s")
    ((command,),) = batcher.transactions
    assert command[:2] == ("EVAL", DELETION_SCRIPT)


async def read_page(history: HistoryStore, **options: Any) -> tuple[list[str], bool]:
    page = await history.get_history_page("s", **options)
    ids = [message.id for message in page.messages]
    assert (page.first_id, page.last_id) == (ids[0], ids[-1]) if ids else (None, None)
    assert page.message_count == 6
    return [message.content for message in page.messages], page.has_more


async def test_pages_start_after_and_end_before_a_message(history: HistoryStore) -> None:
    messages = numbered(6)
    ids = [message.id for message in messages]
    await history.save_messages("s", *messages)
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
    history: HistoryStore,
    limit: int,
    end: int,
    expected: list[int],
    has_more: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    messages = numbered(6)
    await history.save_messages("s", *messages)
    contents, more = await read_page(
        history, limit=limit, after=messages[1].id, before=messages[end].id
    )
    assert (contents, more) == ([f"m{number}" for number in expected], has_more)


async def test_a_page_of_corrupt_members_has_their_ids(
    history: HistoryStore,
    fake_redis: FakeAsyncRedis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await fake_redis.zadd(KEY, {"corrupt": 1, "broken": 2.5})
    page = await history.get_history_page("s")
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


async def test_corrupt_members_are_not_part_of_a_page_and_are_counted_in_the_log(
    history: HistoryStore, fake_redis: FakeAsyncRedis, caplog: pytest.LogCaptureFixture
) -> None:
    messages = numbered(2)
    await history.save_messages("s", *messages)
    await fake_redis.zadd(KEY, {"corrupt": 1, "broken": 2, "damaged": 3})
    page = await history.get_history_page("s")
    assert (page.messages, page.message_count) == (messages, 5)
    assert (page.first_id, page.last_id) == (messages[0].id, messages[1].id)
    assert caplog.messages == ["skipped 3 corrupt member(s) of session s"]


async def test_the_size_is_the_number_of_members(history: HistoryStore) -> None:
    await history.save_messages("s", *numbered(3))
    assert await history.get_session_size("s") == 3


async def test_sessions_are_listed_in_pages(history: HistoryStore) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        await history.save_messages(name, new_message("Hello"))

    async def page(**options: Any) -> list[str]:
        return (await history.get_sessions_page(**options)).sessions

    assert await page() == names[::-1]
    assert await page(oldest_first=True) == names
    assert await page(limit=1) == ["d"]
    assert await page(after="c") == ["b", "a"]
    assert await page(before="c") == ["d"]
    assert await page(after="d", before="a") == ["c", "b"]


async def test_the_info_of_a_session_contains_its_times_and_its_expiry(
    history: HistoryStore, fake_redis: FakeAsyncRedis
) -> None:
    first, _, last = messages = numbered(3)
    await history.save_messages("s", *messages)
    await fake_redis.pexpire(KEY, 501_400)
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
    assert before_s + 500.5 < expires_at_s < after_s + 501.5


async def test_a_session_without_a_ttl_never_expires(
    history: HistoryStore, fake_redis: FakeAsyncRedis
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


async def test_an_unknown_session_has_no_info(history: HistoryStore) -> None:
    assert await history.get_session_info("s") is None


@pytest.mark.parametrize("error", [ConnectionError("down"), ValueError("a bug"), None])
async def test_the_store_is_connected_if_redis_answers(
    history: HistoryStore,
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
