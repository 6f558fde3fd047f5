"""Idempotency keys: which request runs the turn of a key, and which requests follow it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from groqchat import sse
from groqchat.errors import (
    CompletionUnavailable,
    IdempotencyKeyReused,
    Overloaded,
    SessionCleared,
    ShuttingDown,
    UnknownModel,
)
from groqchat.services.turns.idempotency import KeyedRequest
from groqchat.storage import keys
from groqchat.storage.claims import claim_turn
from groqchat.storage.event_log import EventBatch, EventLog
from groqchat.storage.keys import Command
from tests.support.key_workers import KEY, Worker, request
from tests.support.streams import wait_until
from tests.support.turn_workers import new_claim


@pytest.fixture
async def fake_redis() -> AsyncIterator[FakeAsyncRedis]:
    """An empty database of fakeredis."""
    async with FakeAsyncRedis(server=FakeServer()) as client:
        yield client


@pytest.fixture
async def worker(fake_redis: FakeAsyncRedis) -> AsyncIterator[Worker]:
    """A worker."""
    worker = Worker(fake_redis)
    async with worker.turns.publishing():
        yield worker


@pytest.fixture
async def other(fake_redis: FakeAsyncRedis) -> AsyncIterator[Worker]:
    """Another worker on `fake_redis`."""
    worker = Worker(fake_redis)
    async with worker.turns.publishing():
        yield worker


async def read(events: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(10):
        return b"".join([each async for each in events])


async def test_the_first_request_runs_the_turn_and_the_others_follow_it(
    worker: Worker, other: Worker
) -> None:
    release = asyncio.Event()

    async def wait() -> None:
        await release.wait()

    worker.groq.before = wait
    first = await worker.keys.follow(KEY, request())
    turn = worker.running(first.turn_id)
    assert turn.claim is not None
    same_worker = await worker.keys.follow(KEY, request())
    other_worker = await other.keys.follow(KEY, request())
    assert first.turn_id == same_worker.turn_id == other_worker.turn_id == turn.id
    release.set()
    expected = await read(first.events)
    assert expected == b"".join(turn.events)
    assert await read(same_worker.events) == await read(other_worker.events) == expected
    assert (len(worker.groq.prompts), len(other.groq.prompts)) == (1, 0)
    messages = (await worker.history.get_history_page("s")).messages
    assert [message.content for message in messages] == ["Hello", "Hi"]
    assert messages[0].id == turn.id


async def test_a_later_request_receives_the_same_outcome(worker: Worker, other: Worker) -> None:
    first = await worker.outcome()
    assert first["message"] == "Hi"
    assert await worker.outcome() == first
    assert await other.outcome() == first
    assert len(worker.groq.prompts) == 1


async def test_different_keys_run_different_turns(worker: Worker) -> None:
    first, second = await worker.outcome("a"), await worker.outcome("b")
    assert first["turn_id"] != second["turn_id"]
    assert len(worker.groq.prompts) == 2


async def test_a_turn_without_a_session_id_has_one_session_for_all_requests(
    worker: Worker,
) -> None:
    first = await worker.outcome("a", session_id=None)
    assert await worker.outcome("a", session_id=None) == first
    other = await worker.outcome("b", session_id=None)
    assert first["session_id"] != other["session_id"]
    assert len(first["session_id"]) == 36


async def test_a_turn_uses_the_session_id_of_its_request(worker: Worker) -> None:
    assert (await worker.outcome(session_id="given"))["session_id"] == "given"


@pytest.mark.parametrize("fields", [{"stream": True}, {"on_disconnect": "cancel"}])
async def test_the_form_of_delivery_may_differ_between_requests(
    worker: Worker, fields: dict[str, Any]
) -> None:
    first = await worker.outcome()
    assert await worker.outcome(**fields) == first


@pytest.mark.parametrize(
    "fields",
    [{"message": "Bye"}, {"session_id": "t"}, {"session_id": None}, {"context": 1}, {"top_p": 1}],
)
async def test_a_key_cannot_be_reused_with_a_different_request(
    worker: Worker, fields: dict[str, Any]
) -> None:
    await worker.outcome()
    with pytest.raises(IdempotencyKeyReused) as error:
        await worker.keys.follow(KEY, request(**fields))
    assert error.value.param == "Idempotency-Key"
    assert len(worker.groq.prompts) == 1


async def test_the_record_of_a_key_expires_after_an_hour_and_contains_no_key(
    worker: Worker, fake_redis: FakeAsyncRedis
) -> None:
    response = await worker.outcome()
    (name,) = await fake_redis.keys(f"{keys.IDEMPOTENCY_PREFIX}*")
    assert KEY.encode() not in name
    assert len(name) == len(keys.IDEMPOTENCY_PREFIX) + 64
    assert keys.IDEMPOTENCY_TTL_S - 5 <= await fake_redis.ttl(name) <= keys.IDEMPOTENCY_TTL_S
    record = json.loads(await fake_redis.get(name) or b"")
    assert record == {
        "turn_id": response["turn_id"],
        "session_id": "s",
        "fingerprint": record["fingerprint"],
    }
    assert len(record["fingerprint"]) == 64


async def test_a_claim_expires_with_the_lease_if_its_worker_dies(
    worker: Worker, fake_redis: FakeAsyncRedis
) -> None:
    turn = worker.running((await worker.keys.follow(KEY, request())).turn_id)
    ttl_s = await fake_redis.ttl(keys.claim_key(turn.id))
    assert keys.TURN_LEASE_S - 5 <= ttl_s <= keys.TURN_LEASE_S
    await turn.final_event()


@pytest.mark.parametrize("session_id", ["s", None])
async def test_a_request_repeats_the_stored_answer_of_a_turn_whose_claim_has_expired(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis, session_id: str | None
) -> None:
    first = await worker.outcome(session_id=session_id)
    await wait_until(lambda: is_removed(worker, first["turn_id"]))
    await fake_redis.delete(keys.turn_key(first["turn_id"]), keys.claim_key(first["turn_id"]))
    second = await other.outcome(session_id=session_id)
    assert second == first
    assert other.groq.prompts == []


async def test_an_attempt_counts_before_redis_has_its_events(
    fake_redis: FakeAsyncRedis, other: Worker
) -> None:
    # This worker dies before it writes the first event.
    dead = Worker(fake_redis)
    first = await dead.keys.follow(KEY, request())
    assert (await anext(first.events)).startswith(b"id: 1\n")
    await fake_redis.delete(keys.claim_key(first.turn_id))
    second = await other.keys.follow(KEY, request())
    assert (await anext(second.events)).startswith(b"id: 10000001\n")


async def test_a_failed_start_neither_counts_nor_takes_the_claim_of_another_attempt(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    worker.groq.is_known = False
    with pytest.raises(UnknownModel):
        await worker.outcome()
    followed = await other.keys.follow(KEY, request())
    assert (await anext(followed.events)).startswith(b"id: 1\n")
    claim = keys.claim_key(followed.turn_id)
    holder = await fake_redis.get(claim)
    await new_claim(followed.turn_id).release(worker.batcher.transact)
    assert await fake_redis.get(claim) == holder


async def test_a_request_that_meets_a_deletion_keeps_the_new_record_of_its_key(
    worker: Worker, other: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.outcome()
    await wait_until(lambda: is_empty(worker))
    find, transact = worker.keys._find_or_create, worker.batcher.transact
    again: list[dict[str, Any]] = []

    async def find_before_the_deletion(key: str, keyed: KeyedRequest) -> Any:
        record = await find(key, keyed)
        await other.history.clear_session("s")
        monkeypatch.setattr(worker.batcher, "transact", claim_before_the_next_record)
        return record

    async def claim_before_the_next_record(commands: Sequence[Command]) -> Any:
        monkeypatch.setattr(worker.batcher, "transact", transact)
        replies = await transact(commands)
        again.append(await other.outcome())
        return replies

    monkeypatch.setattr(worker.keys, "_find_or_create", find_before_the_deletion)
    with pytest.raises(SessionCleared):
        await worker.outcome()
    assert [await other.outcome()] == again


async def test_a_request_does_not_receive_the_error_of_an_attempt_before_the_running_one(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    async def fail() -> None:
        raise CompletionUnavailable("down")

    worker.groq.before = fail
    followed = await worker.keys.follow(KEY, request())
    assert b"event: error\n" in await read(followed.events)
    turn_id = followed.turn_id
    await wait_until(lambda: is_empty(worker))
    claim = new_claim(turn_id, 1)
    await worker.batcher.transact([claim_turn(turn_id, claim.token)])
    waiting = asyncio.create_task(other.keys.follow(KEY, request()))
    await wait_until(lambda: has_polled(other, turn_id))
    start = sse.encode_event(b"{}", name="start", number=claim.first_number)
    await EventLog(worker.batcher).append(
        [
            EventBatch(
                turn_id=turn_id,
                session_id="s",
                events=start,
                last=claim.first_number,
                is_first=True,
                ttl_s=keys.TURN_LEASE_S,
                claim=claim,
            )
        ]
    )
    assert await anext((await waiting).events) == start


async def has_polled(worker: Worker, turn_id: str) -> bool:
    return worker.batcher.count("XRANGE", keys.turn_key(turn_id)) >= 2


async def is_empty(worker: Worker) -> bool:
    return not worker.turns._local


async def is_removed(worker: Worker, turn_id: str) -> bool:
    return turn_id not in worker.turns._local


async def test_a_turn_that_cannot_start_deletes_its_claim(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    worker.groq.is_known = False
    with pytest.raises(UnknownModel):
        await worker.outcome()
    assert await fake_redis.keys(f"{keys.CLAIM_PREFIX}*") == []
    assert (await other.outcome())["message"] == "Hi"


async def test_a_full_or_stopping_worker_claims_no_turn(
    worker: Worker,
) -> None:
    release = asyncio.Event()

    async def wait() -> None:
        await release.wait()

    worker.groq.before = wait
    running = [asyncio.create_task(worker.chat.answer(request())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await worker.outcome()
    release.set()
    await asyncio.gather(*running)
    await worker.limiter.drain(0, lambda: None)
    with pytest.raises(ShuttingDown):
        await worker.outcome()
    assert worker.batcher.count("SET", keys.CLAIM_PREFIX) == 0
