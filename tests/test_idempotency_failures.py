"""Idempotency keys: turns that do not start, and turns that end without an outcome."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import Redis

from groqchat import sse
from groqchat.errors import (
    HistoryUnavailable,
    TurnLost,
    UnknownModel,
)
from groqchat.models import ChatRequest
from groqchat.services.turns import remote_turns
from groqchat.services.turns.idempotency import FollowedTurn
from groqchat.services.turns.waiters import Waiter
from groqchat.storage import keys
from groqchat.storage.claims import CLAIM_SCRIPT
from tests.support.clock import Clock
from tests.support.key_workers import KEY, Worker, request
from tests.support.streams import wait_until


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's event loop."""
    return Clock(monkeypatch)


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


async def claim_for_a_dead_worker(worker: Worker, redis: Redis) -> str:
    """Claim the turn of the key as a worker that dies at once; return the turn's id."""
    worker.groq.is_known = False
    with pytest.raises(UnknownModel):
        await worker.outcome()
    worker.groq.is_known = True
    (name,) = await redis.keys(f"{keys.IDEMPOTENCY_PREFIX}*")
    record = await redis.get(name)
    turn_id: str = json.loads(record or b"")["turn_id"]
    await redis.set(keys.claim_key(turn_id), "dead")
    return turn_id


async def polls(worker: Worker, count: int) -> None:
    """Wait until a worker has tried to claim a turn this often again."""
    before = worker.batcher.count("EVAL", CLAIM_SCRIPT)

    async def has_polled() -> bool:
        return worker.batcher.count("EVAL", CLAIM_SCRIPT) >= before + count

    await wait_until(has_polled)


async def test_a_request_polls_while_another_worker_starts_the_turn(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_id = await claim_for_a_dead_worker(worker, fake_redis)
    following = asyncio.create_task(other.outcome())
    await polls(other, 2)
    assert not following.done()
    await fake_redis.delete(keys.claim_key(turn_id))
    response = await following
    assert response["turn_id"] == turn_id
    assert len(other.groq.prompts) == 1


async def test_a_request_runs_a_new_turn_soon_after_its_claim_is_released(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    turn_id = await claim_for_a_dead_worker(worker, fake_redis)
    following = asyncio.create_task(other.outcome())
    await polls(other, 1)
    await fake_redis.delete(keys.claim_key(turn_id))
    # Much sooner than a new turn of another worker is expected in Redis.
    response = await asyncio.wait_for(following, remote_turns.NEW_TURN_S / 2)
    assert response["turn_id"] == turn_id


async def test_a_turn_that_does_not_start_within_the_lease_is_lost(
    worker: Worker, fake_redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    turn_id = await claim_for_a_dead_worker(worker, fake_redis)
    following = asyncio.create_task(worker.keys.follow(KEY, request()))
    await polls(worker, 1)
    # The lease and five seconds more.
    await clock.advance(7.5)
    await polls(worker, 3)
    assert not following.done()
    await clock.advance(1.5)
    before = worker.batcher.count("EVAL", CLAIM_SCRIPT)

    async def is_over() -> bool:
        return following.done() or worker.batcher.count("EVAL", CLAIM_SCRIPT) > before + 2

    await wait_until(is_over)
    assert following.done()
    with pytest.raises(TurnLost) as lost:
        await following
    assert lost.value.detail == f"turn {turn_id} did not start"


class LostTurns:
    """Turns whose events end without an outcome, as after the death of a worker."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch, *endings: Any) -> None:
        self.follows = 0
        self._worker = worker
        self._endings = list(endings)
        self._follow = worker.keys.follow
        monkeypatch.setattr(worker.keys, "follow", self._lose)

    async def _lose(
        self, key: str, request: ChatRequest, *, waiter: Waiter | None = None
    ) -> FollowedTurn:
        self.follows += 1
        if self._endings:
            await self._worker.keys._find_or_create(key, self._worker.keys._keyed(request))
            return FollowedTurn(turn_id="", events=self._end(self._endings.pop(0)))
        return await self._follow(key, request, waiter=waiter)

    async def _end(self, ending: Exception | bytes | None) -> AsyncIterator[bytes]:
        yield sse.encode_event(b"{}", name="start", number=1)
        if isinstance(ending, Exception):
            raise ending
        if ending:
            yield ending


DELTA = sse.encode_event(b"{}", name="delta", number=2)


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
