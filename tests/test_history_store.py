"""The history store: the commands that it sends, repeated saves, partial failures."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import Redis

from groqchat.errors import HistoryFailed, HistoryUnavailable, SessionCleared
from groqchat.services.redis_chat_service import (
    FIRST_CONTEXT,
    HistoryPage,
    RedisChatService,
    SessionInfo,
)
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.keys import Command
from groqchat.storage.messages import FAILED, INCOMPLETE, Message, PromptMessage, encode_member
from tests.support.store import MODEL, new_message

TTL_S = 1000
KEY = "chat:session:s"
INDEX = "chat:sessions"


class RecordingBatcher(CommandBatcher):
    """A command batcher that records each transaction; `before` runs before it."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, timeout_s=5)
        self.transactions: list[list[Command]] = []
        self.before: Callable[[int], Awaitable[None]] | None = None

    def transact(self, commands: Sequence[Command]) -> Any:
        self.transactions.append(list(commands))
        return self._run(len(self.transactions), commands)

    async def _run(self, number: int, commands: Sequence[Command]) -> list[Any]:
        if self.before is not None:
            await self.before(number)
        return await super().transact(commands)

    @property
    def names(self) -> list[list[Any]]:
        """The names of the commands of each transaction."""
        return [[command[0] for command in commands] for commands in self.transactions]


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
async def history(fake_redis: FakeAsyncRedis, batcher: RecordingBatcher) -> RedisChatService:
    """A history store on `fake_redis`."""
    return RedisChatService(fake_redis, batcher, ttl_s=TTL_S, timeout_s=5)


async def stored(history: RedisChatService) -> list[Message]:
    return (await history.get_session_history("s")).messages


def prompt(*messages: Message) -> list[PromptMessage]:
    return [{"role": each.role, "content": each.content} for each in messages]


def new_answer(content: str, **fields: str) -> Message:
    return new_message(content, "assistant", finish_reason="stop", **fields)


def numbered(count: int) -> list[Message]:
    return [new_message(f"m{number}") for number in range(count)]


async def test_a_save_without_context_sends_one_transaction_without_a_read(
    history: RedisChatService, batcher: RecordingBatcher
) -> None:
    first, second = numbered(2)
    assert await history.save_message("s", first, second) == []
    ((write, expire, index),) = batcher.transactions
    assert write == (
        "ZADD",
        KEY,
        first.score_text,
        encode_member(first),
        second.score_text,
        encode_member(second),
    )
    assert expire == ("EXPIRE", KEY, TTL_S)
    assert (index[:2], index[3]) == (("ZADD", INDEX), "s")


async def test_a_save_renews_the_ttl_and_the_entry_in_the_index(
    history: RedisChatService, fake_redis: FakeAsyncRedis
) -> None:
    await history.save_message("s", new_message("Hello"))
    ttl_s = await fake_redis.ttl(KEY)
    now_s = (await fake_redis.time())[0]
    expires_at_s = await fake_redis.zscore(INDEX, "s") or 0
    assert TTL_S - 5 <= ttl_s <= TTL_S
    assert now_s + TTL_S - 5 <= expires_at_s <= now_s + TTL_S + 1


@pytest.mark.parametrize("context", [1, FIRST_CONTEXT - 1, FIRST_CONTEXT])
async def test_a_short_context_needs_one_round_trip(
    history: RedisChatService, batcher: RecordingBatcher, context: int
) -> None:
    saved = numbered(FIRST_CONTEXT + 5)
    await history.save_message("s", *saved)
    batcher.transactions.clear()
    new = new_message("new")
    assert await history.save_message("s", new, context=context) == prompt(*saved[-context:])
    assert batcher.names == [["ZRANGE", "ZADD", "EXPIRE", "ZADD"]]
    assert batcher.transactions[0][0] == ("ZRANGE", KEY, -context, -1)


async def test_a_long_context_of_a_short_session_needs_one_round_trip(
    history: RedisChatService, batcher: RecordingBatcher
) -> None:
    saved = numbered(FIRST_CONTEXT - 1)
    await history.save_message("s", *saved)
    batcher.transactions.clear()
    earlier = await history.save_message("s", new_message("new"), context=500)
    assert earlier == prompt(*saved)
    assert batcher.names == [["ZRANGE", "ZADD", "EXPIRE", "ZADD"]]
    assert batcher.transactions[0][0] == ("ZRANGE", KEY, -FIRST_CONTEXT, -1)


async def test_a_long_context_is_read_exactly(history: RedisChatService) -> None:
    saved = numbered(FIRST_CONTEXT + 40)
    await history.save_message("s", *saved)
    for context in (FIRST_CONTEXT + 1, FIRST_CONTEXT + 30):
        session_id = f"s{context}"
        await history.save_message(session_id, *saved)
        earlier = await history.save_message(session_id, new_message("new"), context=context)
        assert earlier == prompt(*saved[-context:])


async def test_a_context_within_the_byte_limit_needs_no_further_read(
    history: RedisChatService, batcher: RecordingBatcher
) -> None:
    saved = [new_message("x" * 10) for _ in range(FIRST_CONTEXT + 5)]
    await history.save_message("s", *saved)
    for limit, transactions in ((10 * FIRST_CONTEXT, 1), (10 * FIRST_CONTEXT + 1, 3)):
        batcher.transactions.clear()
        new = new_message("x" * 10)
        await history.save_message("s", new, context=500, context_bytes=limit)
        assert len(batcher.transactions) == transactions


async def test_the_byte_limit_counts_the_messages_of_both_reads(history: RedisChatService) -> None:
    saved = [new_message(f"{number:0100}") for number in range(200)]
    await history.save_message("s", *saved)
    # The first 50 messages have 5,000 bytes; the next 20 of the second read exceed the limit.
    earlier = await history.save_message(
        "s", new_message("new"), context=500, context_bytes=50 * 100 + 20 * 100
    )
    assert earlier == prompt(*saved[-70:])


async def test_a_context_is_short_if_the_session_changes_during_the_read(
    history: RedisChatService, batcher: RecordingBatcher, fake_redis: FakeAsyncRedis
) -> None:
    saved = numbered(FIRST_CONTEXT + 5)
    await history.save_message("s", *saved)

    async def delete_after_the_first_read(number: int) -> None:
        if number == 3:
            await fake_redis.delete(KEY)

    batcher.before = delete_after_the_first_read
    earlier = await history.save_message("s", new_message("new"), context=500)
    assert earlier == prompt(*saved[5:])


async def test_corrupt_members_are_not_part_of_a_long_context(
    history: RedisChatService, fake_redis: FakeAsyncRedis
) -> None:
    await fake_redis.zadd(KEY, {"corrupt": 1, '{"role":"user","content":"old"}': 2})
    saved = numbered(FIRST_CONTEXT)
    await history.save_message("s", *saved)
    earlier = await history.save_message("s", new_message("new"), context=500)
    assert earlier == [{"role": "user", "content": "old"}, *prompt(*saved)]


async def test_a_repeated_save_returns_only_earlier_messages(history: RedisChatService) -> None:
    before, user_message, later = numbered(3)
    for each in (before, user_message, later):
        await history.save_message("s", each)
    assert await history.save_message("s", user_message, context=10) == prompt(before)


async def test_an_answer_is_stored_after_its_user_message(
    history: RedisChatService, batcher: RecordingBatcher
) -> None:
    user_message, answer = new_message("Hello"), new_answer("Hi")
    await history.save_message("s", user_message)
    batcher.transactions.clear()
    assert await history.save_message("s", answer, user_message=user_message) == []
    assert batcher.names == [["ZCOUNT", "ZADD", "EXPIRE", "ZADD"]]
    score = user_message.score_text
    assert batcher.transactions[0][0] == ("ZCOUNT", KEY, score, score)
    assert await stored(history) == [user_message, answer]


async def test_an_answer_whose_user_message_was_deleted_is_removed_again(
    history: RedisChatService, fake_redis: FakeAsyncRedis
) -> None:
    user_message, answer = new_message("Hello"), new_answer("Hi")
    with pytest.raises(SessionCleared) as error:
        await history.save_message("s", answer, user_message=user_message)
    assert error.value.detail == "session s was deleted during the turn"
    assert await fake_redis.keys() == []


async def test_with_a_context_the_user_message_is_not_checked(history: RedisChatService) -> None:
    before, new = numbered(2)
    await history.save_message("s", before)
    deleted = new_message("deleted")
    earlier = await history.save_message("s", new, context=5, user_message=deleted)
    assert earlier == prompt(before)
    assert await stored(history) == [before, new]


class FailingBatcher(RecordingBatcher):
    """A command batcher whose first transactions fail with these errors."""

    def __init__(self, redis: Redis, *errors: Exception) -> None:
        super().__init__(redis)
        self._errors = list(errors)

    async def _run(self, number: int, commands: Sequence[Command]) -> list[Any]:
        if self._errors:
            raise self._errors.pop(0)
        return await super()._run(number, commands)


async def test_a_confirmed_save_is_not_repeated(
    history: RedisChatService, batcher: RecordingBatcher, caplog: pytest.LogCaptureFixture
) -> None:
    messages = numbered(2)
    assert await history.try_save("s", *messages) is True
    assert len(batcher.transactions) == 1
    assert await stored(history) == messages
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("errors", "is_saved", "attempts"),
    [
        ([HistoryUnavailable("down")], True, 2),
        ([HistoryUnavailable("down")] * 2, False, 2),
        ([HistoryFailed("wrong type")], False, 1),
    ],
)
async def test_an_unavailable_redis_gets_a_second_attempt(
    fake_redis: FakeAsyncRedis,
    caplog: pytest.LogCaptureFixture,
    errors: list[Exception],
    is_saved: bool,  # noqa: FBT001 - a parameter of the test
    attempts: int,
) -> None:
    batcher = FailingBatcher(fake_redis, *errors)
    history = RedisChatService(fake_redis, batcher, ttl_s=TTL_S, timeout_s=5)
    message = new_message("Hello")
    assert await history.try_save("s", message) is is_saved
    assert len(batcher.transactions) == attempts
    assert caplog.messages == [f"could not save messages of session s: {error}" for error in errors]
    assert await stored(history) == ([message] if is_saved else [])


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


async def read_page(history: RedisChatService, **options: Any) -> tuple[list[str], bool]:
    page = await history.get_session_history("s", **options)
    ids = [message.id for message in page.messages]
    assert (page.first_id, page.last_id) == (ids[0], ids[-1]) if ids else (None, None)
    assert page.message_count == 6
    return [message.content for message in page.messages], page.has_more


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
