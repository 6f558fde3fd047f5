"""The history store: saves, the context that they return, and repeated saves."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import Redis

from groqchat.errors import HistoryFailed, HistoryUnavailable, SessionCleared
from groqchat.services.history_store import HistoryStore
from groqchat.storage.history_reader import FIRST_CHUNK
from groqchat.storage.keys import Command
from groqchat.storage.messages import FIRST_CONTEXT, Message, PromptMessage, encode_member
from tests.support.recording_batcher import RecordingBatcher
from tests.support.store import MODEL, new_message

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


def prompt(*messages: Message) -> list[PromptMessage]:
    return [{"role": each.role, "content": each.content} for each in messages]


def new_answer(content: str, **fields: str) -> Message:
    return new_message(content, "assistant", finish_reason="stop", **fields)


def numbered(count: int) -> list[Message]:
    return [new_message(f"m{number}") for number in range(count)]


async def test_a_save_without_context_sends_one_transaction_without_a_read(
    history: HistoryStore, batcher: RecordingBatcher
) -> None:
    first, second = numbered(2)
    assert await history.save_messages("s", first, second) == []
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
    history: HistoryStore, fake_redis: FakeAsyncRedis
) -> None:
    await history.save_messages("s", new_message("Hello"))
    ttl_s = await fake_redis.ttl(KEY)
    now_s = (await fake_redis.time())[0]
    expires_at_s = await fake_redis.zscore(INDEX, "s") or 0
    assert TTL_S - 5 <= ttl_s <= TTL_S
    assert now_s + TTL_S - 5 <= expires_at_s <= now_s + TTL_S + 1


@pytest.mark.parametrize("context", [1, FIRST_CONTEXT - 1, FIRST_CONTEXT])
async def test_a_short_context_needs_one_round_trip(
    history: HistoryStore, batcher: RecordingBatcher, context: int
) -> None:
    saved = numbered(FIRST_CONTEXT + 5)
    await history.save_messages("s", *saved)
    batcher.transactions.clear()
    new = new_message("new")
    assert await history.save_messages("s", new, context=context) == prompt(*saved[-context:])
    assert batcher.names == [["ZRANGE", "ZADD", "EXPIRE", "ZADD"]]
    assert batcher.transactions[0][0] == ("ZRANGE", KEY, -context, -1)


async def test_a_long_context_of_a_short_session_needs_one_round_trip(
    history: HistoryStore, batcher: RecordingBatcher
) -> None:
    saved = numbered(FIRST_CONTEXT - 1)
    await history.save_messages("s", *saved)
    batcher.transactions.clear()
    earlier = await history.save_messages("s", new_message("new"), context=500)
    assert earlier == prompt(*saved)
    assert batcher.names == [["ZRANGE", "ZADD", "EXPIRE", "ZADD"]]
    assert batcher.transactions[0][0] == ("ZRANGE", KEY, -FIRST_CONTEXT, -1)


async def test_a_long_context_is_read_exactly(history: HistoryStore) -> None:
    saved = numbered(FIRST_CONTEXT + 40)
    await history.save_messages("s", *saved)
    for context in (FIRST_CONTEXT + 1, FIRST_CONTEXT + 30):
        session_id = f"s{context}"
        await history.save_messages(session_id, *saved)
        earlier = await history.save_messages(session_id, new_message("new"), context=context)
        assert earlier == prompt(*saved[-context:])


async def test_a_context_within_the_byte_limit_needs_no_further_read(
    history: HistoryStore, batcher: RecordingBatcher
) -> None:
    saved = [new_message("x" * 10) for _ in range(FIRST_CONTEXT + 5)]
    await history.save_messages("s", *saved)
    for limit, transactions in ((10 * FIRST_CONTEXT, 1), (10 * FIRST_CONTEXT + 1, 3)):
        batcher.transactions.clear()
        new = new_message("x" * 10)
        await history.save_messages("s", new, context=500, context_bytes=limit)
        assert len(batcher.transactions) == transactions


async def test_the_byte_limit_counts_the_messages_of_both_reads(history: HistoryStore) -> None:
    saved = [new_message(f"{number:0100}") for number in range(200)]
    await history.save_messages("s", *saved)
    # The first 50 messages have 5,000 bytes; the next 20 of the second read exceed the limit.
    earlier = await history.save_messages(
        "s", new_message("new"), context=500, context_bytes=50 * 100 + 20 * 100
    )
    assert earlier == prompt(*saved[-70:])


async def test_the_byte_limit_counts_the_bytes_of_characters(history: HistoryStore) -> None:
    saved = [new_message("é" * 50) for _ in range(200)]
    await history.save_messages("s", *saved)
    # The first 50 messages have 2,500 characters, but 5,000 bytes.
    earlier = await history.save_messages(
        "s", new_message("new"), context=500, context_bytes=50 * 100
    )
    assert earlier == prompt(*saved[-50:])


async def test_a_failure_during_the_read_of_older_messages_leaves_those_that_were_read(
    history: HistoryStore, batcher: RecordingBatcher
) -> None:
    saved = numbered(FIRST_CONTEXT + FIRST_CHUNK + 100)
    await history.save_messages("s", *saved)
    batcher.transactions.clear()

    async def fail_the_second_chunk(number: int) -> None:
        # The write, the score of the oldest message, a chunk.
        if number == 4:
            raise HistoryUnavailable("no answer")

    batcher.before = fail_the_second_chunk
    earlier = await history.save_messages("s", new_message("new"), context=500)
    assert earlier == prompt(*saved[-FIRST_CONTEXT - FIRST_CHUNK :])


async def test_a_context_is_short_if_the_session_changes_during_the_read(
    history: HistoryStore, batcher: RecordingBatcher, fake_redis: FakeAsyncRedis
) -> None:
    saved = numbered(FIRST_CONTEXT + 5)
    await history.save_messages("s", *saved)

    async def delete_after_the_first_read(number: int) -> None:
        if number == 3:
            await fake_redis.delete(KEY)

    batcher.before = delete_after_the_first_read
    earlier = await history.save_messages("s", new_message("new"), context=500)
    assert earlier == prompt(*saved[5:])


async def test_corrupt_members_are_not_part_of_a_long_context(
    history: HistoryStore, fake_redis: FakeAsyncRedis
) -> None:
    await fake_redis.zadd(KEY, {"corrupt": 1, '{"role":"user","content":"old"}': 2})
    saved = numbered(FIRST_CONTEXT)
    await history.save_messages("s", *saved)
    earlier = await history.save_messages("s", new_message("new"), context=500)
    assert earlier == [{"role": "user", "content": "old"}, *prompt(*saved)]


async def test_a_repeated_save_returns_only_earlier_messages(history: HistoryStore) -> None:
    before, user_message, later = numbered(3)
    for each in (before, user_message, later):
        await history.save_messages("s", each)
    assert await history.save_messages("s", user_message, context=10) == prompt(before)


async def test_an_answer_is_stored_after_its_user_message(
    history: HistoryStore, batcher: RecordingBatcher
) -> None:
    user_message, answer = new_message("Hello"), new_answer("Hi")
    await history.save_messages("s", user_message)
    batcher.transactions.clear()
    assert await history.save_messages("s", answer, user_message=user_message) == []
    assert batcher.names == [["ZCOUNT", "ZADD", "EXPIRE", "ZADD"]]
    score = user_message.score_text
    assert batcher.transactions[0][0] == ("ZCOUNT", KEY, score, score)
    assert await stored(history) == [user_message, answer]


async def test_an_answer_whose_user_message_was_deleted_is_removed_again(
    history: HistoryStore, fake_redis: FakeAsyncRedis
) -> None:
    user_message, answer = new_message("Hello"), new_answer("Hi")
    with pytest.raises(SessionCleared) as error:
        await history.save_messages("s", answer, user_message=user_message)
    assert error.value.detail == "session s was deleted during the turn"
    assert await fake_redis.keys() == []


async def test_with_a_context_the_user_message_is_not_checked(history: HistoryStore) -> None:
    before, new = numbered(2)
    await history.save_messages("s", before)
    deleted = new_message("deleted")
    earlier = await history.save_messages("s", new, context=5, user_message=deleted)
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
    history: HistoryStore, batcher: RecordingBatcher, caplog: pytest.LogCaptureFixture
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
    history = HistoryStore(fake_redis, batcher, ttl_s=TTL_S, timeout_s=5)
    message = new_message("Hello")
    assert await history.try_save("s", message) is is_saved
    assert len(batcher.transactions) == attempts
    assert caplog.messages == [f"could not save messages of session s: {error}" for error in errors]
    assert await stored(history) == ([message] if is_saved else [])


async def test_the_answer_to_a_deleted_message_is_not_saved(
    history: HistoryStore, fake_redis: FakeAsyncRedis
) -> None:
    answer = new_answer("Hi")
    with pytest.raises(SessionCleared):
        await history.try_save("s", answer, user_message=new_message("Hello"))
    assert await fake_redis.keys() == []


async def test_messages_contain_their_model(history: HistoryStore) -> None:
    message = new_message("Hello")
    await history.save_messages("s", message)
    assert [(each.id, each.model) for each in await stored(history)] == [(message.id, MODEL)]
