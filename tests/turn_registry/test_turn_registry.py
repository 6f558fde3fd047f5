"""The turn registry: stopping turns on any worker, and removing finished turns."""

import asyncio
from typing import Any

import pytest

from groqchat.errors import HistoryUnavailable, TurnNotFound
from groqchat.services.turns import registry as registry_module
from groqchat.services.turns.turn import Turn
from groqchat.storage import keys
from groqchat.storage.event_log import EventLog
from groqchat.storage.message_ids import new_message_id
from tests.support.clock import Clock
from tests.support.streams import wait_until
from tests.support.turn_workers import (
    DONE,
    STOPPED,
    Worker,
    finish,
    is_published,
    old_id,
    publish,
)


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


async def test_a_private_turn_is_not_found_without_a_read(worker: Worker) -> None:
    turn = worker.start(is_private=True)
    with pytest.raises(TurnNotFound):
        await worker.registry.stop(turn.id)
    with pytest.raises(TurnNotFound):
        await worker.registry.follow(turn.id)
    assert worker.batcher.commands == []
    assert turn.stop_reason is None


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
    await clock.advance(4)
    assert not stopping.done()
    await clock.advance(1)
    assert stopping.done()
    assert await stopping == "stopping"


async def test_all_turns_of_a_worker_are_stopped_at_once(worker: Worker) -> None:
    turns = [worker.start(), worker.start(is_private=True)]
    worker.registry.shut_down()
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


async def has_no_turns(worker: Worker) -> bool:
    return not worker.registry._local


def is_local(worker: Worker, turn: Turn) -> bool:
    return turn.id in worker.registry._local


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
    turn = publishing.start()
    await wait_until(lambda: is_published(other, turn))
    publishing.batcher.commands.clear()
    loop = asyncio.get_running_loop()
    started = loop.time()
    for _ in range(100):
        await clock.advance(0.03)
    reads = len(publishing.batcher.named("XRANGE", keys.STOP_REQUESTS))
    # A read is due every 100 ms, and the events are published every 25 ms.
    assert 3 / 0.16 <= reads <= (loop.time() - started) / 0.1 + 1
