"""Publishing the events of turns: writes, leases, and failures of Redis."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from groqchat.errors import HistoryUnavailable
from groqchat.services.turns import registry as registry_module
from groqchat.services.turns.turn import Turn
from groqchat.storage import keys
from groqchat.storage.keys import Command
from groqchat.storage.message_ids import new_message_id
from tests.support.clock import Clock
from tests.support.streams import wait_until
from tests.support.turn_workers import (
    DONE,
    Worker,
    finish,
    is_published,
    new_claim,
    publish,
)


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
    turn = publishing.start(claim=new_claim())
    await wait_until(lambda: is_published(other, turn))
    names = (keys.turn_key(turn.id), keys.claim_key(turn.id))
    expected = [
        *(("EXPIRE", name, keys.TURN_LEASE_S) for name in names),
        ("EXPIRE", keys.session_keys_key("s"), keys.SESSION_KEYS_TTL_S),
    ]
    assert publishing.batcher.named("EXPIRE") == expected
    turn.add("delta", {"text": "a"})
    await wait_until(lambda: is_published(other, turn))
    # The lease is still fresh.
    assert publishing.batcher.named("EXPIRE") == expected
    finish(turn)
    await wait_until(lambda: is_published(other, turn))
    expected += [("EXPIRE", name, keys.IDEMPOTENCY_TTL_S) for name in names]
    assert publishing.batcher.named("EXPIRE") == expected


async def test_the_events_of_a_turn_have_a_ttl_although_the_turn_began_without_events(
    publishing: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    turn = Turn(new_message_id(), "s")
    publishing.registry.add(turn)
    later = publishing.start()
    await wait_until(lambda: is_published(other, later))
    turn.add("start", {"turn_id": turn.id})
    await wait_until(lambda: is_published(other, turn))
    assert await fake_redis.ttl(keys.turn_key(turn.id)) == keys.TURN_LEASE_S


async def test_the_lease_is_renewed_twice_a_second(
    publishing: Worker, other: Worker, clock: Clock
) -> None:
    turn, barrier = publishing.start(), publishing.start()
    await wait_until(lambda: is_published(other, turn))
    leases = ("EXPIRE", keys.turn_key(turn.id), keys.TURN_LEASE_S)
    assert len(publishing.batcher.named(*leases)) == 1
    await clock.advance(0.3)
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


async def test_events_that_arrive_within_a_moment_share_a_write(
    publishing: Worker, other: Worker
) -> None:
    turn = publishing.start()
    for number in range(100):
        await asyncio.sleep(0)
        turn.add("delta", {"text": str(number)})
    await wait_until(lambda: is_published(other, turn))
    assert len(publishing.batcher.named("XADD")) <= 2


async def test_the_end_of_a_turn_after_its_last_event_is_published_too(
    publishing: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    turn = publishing.start()
    turn.add("done", DONE)
    await wait_until(lambda: is_published(other, turn))
    key = keys.turn_key(turn.id)
    assert await fake_redis.ttl(key) <= keys.TURN_LEASE_S
    turn.end()

    async def is_retained() -> bool:
        return await fake_redis.ttl(key) > keys.TURN_LEASE_S

    await wait_until(is_retained)
    assert len(publishing.batcher.named("XADD", key)) == 1


async def test_events_that_redis_has_lost_are_published_again(
    publishing: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    turn = publishing.start()
    await wait_until(lambda: is_published(other, turn))
    await fake_redis.flushall()
    turn.add("delta", {"text": "a"})
    await wait_until(lambda: is_published(other, turn))
    key = keys.turn_key(turn.id)
    assert 0 < await fake_redis.ttl(key) <= keys.TURN_LEASE_S
    # Again, together with the last event.
    await fake_redis.flushall()
    finish(turn)
    await wait_until(lambda: is_published(other, turn))
    assert keys.TURN_LEASE_S < await fake_redis.ttl(key) <= keys.TURN_RETENTION_S


async def test_events_that_redis_has_lost_are_restored_without_a_new_event(
    publishing: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    turn = publishing.start(claim=new_claim())
    await wait_until(lambda: is_published(other, turn))
    events = await other.registry.follow(turn.id)
    assert events is not None
    assert await anext(events) == turn.events[0]
    await fake_redis.delete(keys.turn_key(turn.id), keys.claim_key(turn.id))
    await wait_until(lambda: is_published(other, turn))
    # No other request may run the turn, and its followers have not lost it.
    assert 0 < await fake_redis.ttl(keys.claim_key(turn.id)) <= keys.TURN_LEASE_S
    turn.add("delta", {"text": "a"})
    assert await asyncio.wait_for(anext(events), 5) == turn.events[1]


async def test_an_outage_of_redis_is_logged_once_and_the_events_follow(
    publishing: Worker, other: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    message = "cannot write the events of turns to Redis: down"
    for _ in range(2):
        caplog.clear()
        turn = publishing.start()
        publishing.batcher.error = HistoryUnavailable("down")

        async def is_logged() -> bool:
            return message in caplog.messages

        await wait_until(is_logged)
        turn.add("delta", {"text": "a"})
        await asyncio.sleep(3 * registry_module.COALESCE_S)
        publishing.batcher.error = None
        await wait_until(lambda turn=turn: is_published(other, turn))  # type: ignore[misc] # mypy cannot infer a lambda with a default
        assert caplog.messages == [message]


async def test_a_rejected_turn_does_not_affect_the_others(
    publishing: Worker, other: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rejected = Turn(new_message_id(), "s")
    publishing.batcher.rejected = rejected.id
    rejected.add("start", {})
    publishing.registry.add(rejected)
    turns = [publishing.start() for _ in range(3)]
    for turn in turns:
        await wait_until(lambda turn=turn: is_published(other, turn))  # type: ignore[misc] # mypy cannot infer a lambda with a default
    assert await other.published(rejected.id) == b""
    assert caplog.messages == [f"Redis rejected events of turn {rejected.id}: rejected"]
    # Its worker does not try to publish these events again.
    finish(rejected)
    finish(turns[0])
    await wait_until(lambda: is_published(other, turns[0]))
    assert len(caplog.messages) == 2
    assert await publishing.follow(turns[0].id) == b"".join(turns[0].events)


async def test_many_turns_are_published_in_groups(worker: Worker, other: Worker) -> None:
    turns = [worker.start() for _ in range(130)]
    sizes: list[int] = []
    transact = worker.batcher.transact

    def count(commands: Sequence[Command]) -> Any:
        sizes.append(sum(command[0] == "XADD" for command in commands))
        return transact(commands)

    worker.batcher.transact = count  # type: ignore[method-assign] # counts the commands of each transaction
    await publish(worker)
    assert [size for size in sizes if size] == [64, 64, 2]
    for turn in turns:
        assert await is_published(other, turn)
