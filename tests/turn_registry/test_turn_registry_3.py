"""The turn registry: turns of this worker and of others, their events in Redis, stop requests."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from groqchat.errors import HistoryUnavailable
from groqchat.services.turns import registry as registry_module
from groqchat.services.turns.turn import Turn
from groqchat.storage import keys
from groqchat.storage.event_log import EventLog
from groqchat.storage.keys import Command
from groqchat.storage.message_ids import new_message_id
from tests.support.streams import wait_until
from tests.turn_registry.conftest import (
    DONE,
    Clock,
    Worker,
    finish,
    is_local,
    is_published,
    publish,
)


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


async def test_a_finished_turn_is_removed_from_memory_after_its_events_are_published(
    publishing: Worker, other: Worker
) -> None:
    running, finished = publishing.start(), publishing.start()
    private = publishing.start(is_private=True)
    for turn in (finished, private):
        finish(turn)

    async def are_removed() -> bool:
        return not is_local(publishing, finished) and not is_local(publishing, private)

    await wait_until(are_removed)
    assert is_local(publishing, running)
    # From now on the events are read from Redis.
    assert await publishing.follow(finished.id) == b"".join(finished.events)
    assert await other.published(finished.id) == b"".join(finished.events)


async def test_an_unpublished_turn_stays_in_memory_for_a_minute(
    publishing: Worker, clock: Clock
) -> None:
    publishing.batcher.error = HistoryUnavailable("down")
    turn = publishing.start()
    finish(turn)
    barrier = publishing.start(is_private=True)

    async def barrier_removed() -> bool:
        return not is_local(publishing, barrier)

    await clock.advance(100)
    finish(barrier)
    await wait_until(barrier_removed)
    await clock.advance(59)
    second = publishing.start(is_private=True)
    finish(second)

    async def second_removed() -> bool:
        return not is_local(publishing, second)

    await wait_until(second_removed)
    assert await publishing.follow(turn.id) == b"".join(turn.events)
    await clock.advance(1)

    async def turn_removed() -> bool:
        return not is_local(publishing, turn)

    await wait_until(turn_removed)


async def test_a_worker_without_turns_sends_no_commands(publishing: Worker) -> None:
    for _ in range(2):
        turn = publishing.start()
        finish(turn)

        async def is_removed(turn: Turn = turn) -> bool:
            return not is_local(publishing, turn)

        await wait_until(is_removed)
        publishing.batcher.commands.clear()
        await asyncio.sleep(3 * registry_module.COALESCE_S)
        assert publishing.batcher.commands == []


async def test_stop_requests_are_read_ten_times_a_second(
    publishing: Worker, other: Worker, clock: Clock
) -> None:
    def reads() -> int:
        return len(publishing.batcher.named("XRANGE", keys.STOP_REQUESTS))

    turn = publishing.start()
    await wait_until(lambda: is_published(other, turn))
    turn.add("delta", {"text": "a"})
    await wait_until(lambda: is_published(other, turn))
    assert reads() == 1
    await clock.advance(0.1)

    async def has_read_again() -> bool:
        return reads() == 2

    await wait_until(has_read_again)
    await EventLog(other.batcher).request_stop(turn.id)

    async def is_stopped() -> bool:
        return turn.stop_reason is not None

    await wait_until(is_stopped)
