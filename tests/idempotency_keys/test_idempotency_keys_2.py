"""Idempotency keys: which request runs the turn of a key, and which requests follow it."""

import asyncio

import pytest
from fakeredis import FakeAsyncRedis

from groqchat import sse
from groqchat.errors import (
    HistoryUnavailable,
    Overloaded,
    ShuttingDown,
    TurnLost,
    UnknownModel,
)
from groqchat.services.turns import registry
from groqchat.storage import keys
from tests.idempotency_keys.conftest import (
    DELTA,
    KEY,
    Clock,
    LostTurns,
    Worker,
    claim_for_a_dead_worker,
    polls,
    request,
)


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


async def test_a_request_polls_while_another_worker_starts_the_turn(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "NEW_TURN_S", 0)
    turn_id = await claim_for_a_dead_worker(worker, fake_redis)
    following = asyncio.create_task(other.outcome())
    await polls(other, 2)
    assert not following.done()
    await fake_redis.delete(keys.claim_key(turn_id))
    response = await following
    assert response["turn_id"] == turn_id
    assert len(other.groq.prompts) == 1


async def test_a_turn_that_does_not_start_within_the_lease_is_lost(
    worker: Worker, fake_redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(registry, "NEW_TURN_S", 0)
    turn_id = await claim_for_a_dead_worker(worker, fake_redis)
    following = asyncio.create_task(worker.keys.follow(KEY, request()))
    await polls(worker, 1)
    # The lease and five seconds more.
    clock.advance(19.5)
    await polls(worker, 3)
    assert not following.done()
    clock.advance(0.5)
    with pytest.raises(TurnLost) as lost:
        await asyncio.wait_for(following, 0.5)
    assert lost.value.detail == f"turn {turn_id} did not start"


@pytest.mark.parametrize("ending", [TurnLost("died"), DELTA, None])
async def test_a_lost_turn_is_run_again_once(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, ending: Exception | bytes | None
) -> None:
    lost = LostTurns(worker, monkeypatch, ending)
    assert (await worker.outcome())["message"] == "Hi"
    assert lost.follows == 2


@pytest.mark.parametrize(
    ("ending", "detail"),
    [(TurnLost("died"), "died"), (DELTA, "the events ended without an outcome")],
)
async def test_a_turn_that_is_lost_twice_is_an_error(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, ending: Exception | bytes, detail: str
) -> None:
    lost = LostTurns(worker, monkeypatch, ending, ending)
    with pytest.raises(TurnLost) as error:
        await worker.outcome()
    assert error.value.detail == detail
    assert lost.follows == 2


async def test_another_failure_is_not_repeated(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = LostTurns(worker, monkeypatch, HistoryUnavailable("down"))
    with pytest.raises(HistoryUnavailable):
        await worker.outcome()
    assert lost.follows == 1


@pytest.mark.parametrize("name", ["done", "error"])
async def test_an_error_event_is_an_outcome_too(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    event = sse.encode_event(b'{"x":1}', name=name, number=2)
    lost = LostTurns(worker, monkeypatch, event)
    found = await worker.keys.outcome(KEY, request())
    assert found == event.removesuffix(sse.EVENT_END)
    assert lost.follows == 1
