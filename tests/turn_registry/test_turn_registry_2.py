"""The turn registry: turns of this worker and of others, their events in Redis, stop requests."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from groqchat.errors import HistoryUnavailable, TurnLost, TurnNotFound
from groqchat.services.turns.registry import last_events
from groqchat.services.turns.turn import Turn
from groqchat.storage import keys
from groqchat.storage.event_log import EventLog
from groqchat.storage.message_ids import new_message_id
from tests.support.streams import wait_until
from tests.turn_registry.conftest import (
    DONE,
    STOPPED,
    Clock,
    Worker,
    finish,
    has_no_turns,
    is_published,
    old_id,
    publish,
)


async def test_a_turn_that_disappears_is_lost(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    turn = worker.start()
    await publish(worker)
    events = await other.registry.follow(turn.id)
    assert events is not None
    assert await anext(events) == turn.events[0]
    await fake_redis.delete(keys.turn_key(turn.id))
    with pytest.raises(TurnLost) as lost:
        await asyncio.wait_for(anext(events), 5)
    assert lost.value.detail == f"turn {turn.id}"


async def test_the_last_events_of_a_stream_are_returned_after_its_end() -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"first"
        yield b"last"

    assert await last_events(stream()) == b"last"
    assert await last_events(None) == b""


@pytest.mark.parametrize(("data", "result"), [(STOPPED, "stopped"), (DONE, "finished")])
async def test_stopping_a_turn_of_this_worker_waits_for_its_end(
    worker: Worker, data: dict[str, Any], result: str
) -> None:
    turn = worker.start()
    stopping = asyncio.create_task(worker.registry.stop(turn.id))
    await asyncio.sleep(0)
    assert turn.stop_reason == "stopped"
    await asyncio.sleep(0)
    assert not stopping.done()
    finish(turn, data)
    assert await stopping == result
    # No other worker needs to know.
    assert worker.batcher.commands == []


@pytest.mark.parametrize(("data", "result"), [(STOPPED, "stopped"), (DONE, "finished")])
async def test_another_worker_stops_a_turn_through_redis(
    publishing: Worker, other: Worker, data: dict[str, Any], result: str
) -> None:
    turn, unaffected = publishing.start(), publishing.start()
    stopping = asyncio.create_task(other.registry.stop(turn.id))

    async def is_stopped() -> bool:
        return turn.stop_reason is not None

    await wait_until(is_stopped)
    assert turn.stop_reason == "stopped"
    assert not stopping.done()
    finish(turn, data)
    assert await asyncio.wait_for(stopping, 5) == result
    assert len(other.batcher.named("XADD", keys.STOP_REQUESTS)) == 1
    assert unaffected.stop_reason is None
    finish(unaffected)


async def test_a_finished_turn_of_another_worker_is_not_stopped(
    worker: Worker, other: Worker
) -> None:
    turn = worker.start()
    finish(turn)
    await publish(worker)
    assert await other.registry.stop(turn.id) == "finished"
    assert other.batcher.named("XADD") == []


async def test_an_unknown_turn_cannot_be_stopped(other: Worker) -> None:
    with pytest.raises(TurnNotFound):
        await other.registry.stop(old_id(60))
    assert other.batcher.named("XADD") == []


async def test_a_turn_that_fails_is_not_stopped_but_finished(worker: Worker) -> None:
    turn = worker.start()
    stopping = asyncio.create_task(worker.registry.stop(turn.id))
    await asyncio.sleep(0)
    turn.add("error", {"error": "x"})
    turn.end()
    assert await stopping == "finished"


async def test_a_stop_that_takes_longer_than_five_seconds_is_reported_as_stopping(
    worker: Worker, clock: Clock
) -> None:
    turn = worker.start()
    stopping = asyncio.create_task(worker.registry.stop(turn.id))
    await asyncio.sleep(0)
    await clock.advance(4.9)
    assert not stopping.done()
    await clock.advance(0.1)
    assert stopping.done()
    assert await stopping == "stopping"


async def test_all_turns_of_a_worker_are_stopped_at_once(worker: Worker) -> None:
    turns = [worker.start(), worker.start(is_private=True)]
    worker.registry.stop_all("shutdown")
    assert [turn.stop_reason for turn in turns] == ["shutdown", "shutdown"]


async def test_stop_requests_from_a_time_without_turns_are_ignored(
    publishing: Worker, other: Worker
) -> None:
    for _ in range(2):
        turn_id = new_message_id()
        await EventLog(other.batcher).request_stop(turn_id)
        # A request with an Idempotency-Key may run a turn again, with the id of the first attempt.
        turn, later = publishing.start(turn_id), publishing.start()
        await wait_until(lambda turn=turn: is_published(other, turn))  # type: ignore[misc] # mypy cannot infer a lambda with a default
        await EventLog(other.batcher).request_stop(later.id)

        async def is_stopped(later: Turn = later) -> bool:
            return later.stop_reason is not None

        await wait_until(is_stopped)
        assert turn.stop_reason is None
        finish(turn)
        finish(later)
        await wait_until(lambda: has_no_turns(publishing))


async def test_the_remaining_events_are_published_when_the_worker_stops(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    async with worker.registry.publishing():
        turn = worker.start()
        for _ in range(40):
            turn.add("delta", {"text": "x" * 10_000})
        finish(turn)
    assert await other.published(turn.id) == b"".join(turn.events)
    assert await fake_redis.ttl(keys.turn_key(turn.id)) == keys.TURN_RETENTION_S


async def test_without_redis_the_worker_stops_without_an_error(worker: Worker) -> None:
    async with worker.registry.publishing():
        finish(worker.start())
        worker.batcher.error = HistoryUnavailable("down")


async def test_an_error_in_the_block_propagates(worker: Worker, other: Worker) -> None:
    turn = worker.start()
    with pytest.raises(ZeroDivisionError):
        async with worker.registry.publishing():
            raise ZeroDivisionError
    assert await is_published(other, turn)


async def test_a_running_turn_has_the_ttl_of_a_lease_and_a_finished_one_its_retention(
    publishing: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    turn = publishing.start(is_shared=True)
    await wait_until(lambda: is_published(other, turn))
    names = (keys.turn_key(turn.id), keys.claim_key(turn.id))
    expected = [("EXPIRE", name, keys.TURN_LEASE_S) for name in names]
    assert publishing.batcher.named("EXPIRE") == expected
    turn.add("delta", {"text": "a"})
    await wait_until(lambda: is_published(other, turn))
    # The lease is still fresh.
    assert publishing.batcher.named("EXPIRE") == expected
    finish(turn)
    await wait_until(lambda: is_published(other, turn))
    expected += [("EXPIRE", name, keys.IDEMPOTENCY_TTL_S) for name in names]
    assert publishing.batcher.named("EXPIRE") == expected


async def test_the_lease_is_renewed_every_third_of_its_time(
    publishing: Worker, other: Worker, clock: Clock
) -> None:
    turn, barrier = publishing.start(), publishing.start()
    await wait_until(lambda: is_published(other, turn))
    leases = ("EXPIRE", keys.turn_key(turn.id), keys.TURN_LEASE_S)
    assert len(publishing.batcher.named(*leases)) == 1
    await clock.advance(keys.TURN_LEASE_S / 3 - 0.5)
    barrier.add("delta", {"text": "a"})
    await wait_until(lambda: is_published(other, barrier))
    assert len(publishing.batcher.named(*leases)) == 1
    await clock.advance(0.5)

    async def is_renewed() -> bool:
        return len(publishing.batcher.named(*leases)) == 2

    await wait_until(is_renewed)
    barrier.add("delta", {"text": "b"})
    await wait_until(lambda: is_published(other, barrier))
    assert len(publishing.batcher.named(*leases)) == 2


async def test_for_a_running_turn_without_new_events_only_stop_requests_are_read(
    publishing: Worker, other: Worker, clock: Clock
) -> None:
    turn = publishing.start()
    await wait_until(lambda: is_published(other, turn))
    publishing.batcher.transactions.clear()
    for reads in (1, 2, 3):
        await clock.advance(0.1)

        async def has_read(reads: int = reads) -> bool:
            return len(publishing.batcher.transactions) >= reads

        await wait_until(has_read)
    names = [[command[:2] for command in each] for each in publishing.batcher.transactions]
    assert names[:3] == [[("XRANGE", keys.STOP_REQUESTS)]] * 3


async def test_events_are_written_once_and_appended_with_their_last_number(
    publishing: Worker, other: Worker
) -> None:
    turn = publishing.start()
    await wait_until(lambda: is_published(other, turn))
    turn.add("delta", {"text": "a"})
    turn.add("delta", {"text": "b"})
    await wait_until(lambda: is_published(other, turn))
    finish(turn)
    await wait_until(lambda: is_published(other, turn))
    await publish(publishing)
    key = keys.turn_key(turn.id)
    start, a, b, done = turn.events
    assert publishing.batcher.named("XADD", key) == [
        ("XADD", key, "1-0", b"frames", start),
        ("XADD", key, "NOMKSTREAM", "3-0", b"frames", a + b),
        ("XADD", key, "NOMKSTREAM", "4-0", b"frames", done),
    ]
