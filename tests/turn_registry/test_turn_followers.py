"""Following a turn: the events of this worker's turns, and those of other workers' turns."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakeredis import FakeAsyncRedis

from groqchat.errors import HistoryUnavailable, TurnLost, TurnNotFound
from groqchat.services.turns import remote_turns
from groqchat.services.turns.registry import last_events
from groqchat.services.turns.remote_turns import OUTAGE_S
from groqchat.sse import MAX_WRITE_BYTES
from groqchat.storage import keys
from groqchat.storage.message_ids import new_message_id
from tests.support.clock import Clock
from tests.support.streams import wait_until
from tests.support.turn_workers import (
    Worker,
    finish,
    is_published,
    old_id,
    publish,
)


async def test_a_turn_of_this_worker_is_followed_without_redis(worker: Worker) -> None:
    turn = worker.start()
    worker.batcher.error = HistoryUnavailable("down")
    following = asyncio.create_task(worker.follow(turn.id, 1))
    await asyncio.sleep(0)
    finish(turn)
    assert await following == turn.events[1]
    assert await worker.follow(turn.id) == b"".join(turn.events)


@pytest.mark.parametrize(("after", "is_empty"), [(0, False), (1, False), (2, True), (3, True)])
async def test_after_the_last_event_of_a_finished_turn_there_is_nothing_to_follow(
    worker: Worker, other: Worker, after: int, *, is_empty: bool
) -> None:
    turn = worker.start()
    finish(turn)
    expected = None if is_empty else b"".join(turn.events[after:])
    assert await worker.follow(turn.id, after) == expected
    await publish(worker)
    assert await other.follow(turn.id, after) == expected


async def test_a_running_turn_can_be_followed_from_its_latest_event(worker: Worker) -> None:
    turn = worker.start()
    following = asyncio.create_task(worker.follow(turn.id, 1))
    await asyncio.sleep(0)
    assert not following.done()
    finish(turn)
    assert await following == turn.events[1]


@pytest.mark.parametrize(("after", "count"), [(4, 2), (5, 1), (6, 0), (300, 0)])
async def test_a_client_that_is_ahead_receives_only_later_events_from_every_worker(
    publishing: Worker, other: Worker, after: int, count: int
) -> None:
    turn = publishing.start()
    following = [asyncio.create_task(each.follow(turn.id, after)) for each in (publishing, other)]
    await wait_until(lambda: is_published(other, turn))
    for number in range(4):
        turn.add("delta", {"text": str(number)})
    finish(turn)
    expected = b"".join(turn.events[len(turn.events) - count :])
    assert [await each or b"" for each in following] == [expected, expected]


async def test_another_worker_follows_the_events_as_they_are_published(
    publishing: Worker, other: Worker
) -> None:
    turn = publishing.start()
    events = await other.registry.follow(turn.id)
    assert events is not None
    assert await anext(events) == turn.events[0]
    for number in range(3):
        turn.add("delta", {"text": str(number)})
        assert await asyncio.wait_for(anext(events), 5) == turn.events[-1]
    finish(turn)
    assert await asyncio.wait_for(anext(events), 5) == turn.events[-1]
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_another_worker_receives_a_long_turn_in_writes_of_limited_size(
    worker: Worker, other: Worker
) -> None:
    turn = worker.start()
    for _ in range(40):
        turn.add("delta", {"text": "x" * 10_000})
    finish(turn)
    await publish(worker)
    events = await other.registry.follow(turn.id)
    assert events is not None
    writes = [each async for each in events]
    assert b"".join(writes) == b"".join(turn.events)
    assert max(map(len, writes)) < MAX_WRITE_BYTES + 11_000


async def test_the_turn_of_a_private_request_is_unknown_to_others(
    publishing: Worker, other: Worker
) -> None:
    turn = publishing.start(old_id(60), is_private=True)
    public = publishing.start()
    finish(turn)
    finish(public)
    assert await other.follow(public.id) == b"".join(public.events)
    for each in (publishing, other):
        with pytest.raises(TurnNotFound):
            await each.follow(turn.id)


@pytest.mark.parametrize("age_s", [3, 3600, -3])
async def test_an_old_turn_that_is_not_in_redis_does_not_exist(other: Worker, age_s: float) -> None:
    with pytest.raises(TurnNotFound):
        await other.follow(old_id(age_s))
    assert len(other.batcher.named("XRANGE")) == 1


async def test_a_new_turn_is_awaited_for_two_seconds(
    other: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    turn_id = old_id(1)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(TurnNotFound):
        await other.follow(turn_id)
    # The rest of the two seconds, in polls of 25 ms.
    assert set(slept) == {0.025}
    assert 20 <= len(slept) <= 40
    assert len(other.batcher.named("XRANGE")) == len(slept) + 1


async def test_a_new_turn_is_found_as_soon_as_it_is_published(
    publishing: Worker, other: Worker
) -> None:
    turn_id = new_message_id()
    following = asyncio.create_task(other.follow(turn_id))
    await wait_until(lambda: has_polled(other))
    turn = publishing.start(turn_id)
    finish(turn)
    assert await following == b"".join(turn.events)


async def has_polled(worker: Worker) -> bool:
    return len(worker.batcher.named("XRANGE")) >= 2


async def test_polls_become_rarer_while_there_are_no_events(
    worker: Worker, other: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = worker.start()
    turn.add("delta", {"text": "a"})
    await publish(worker)
    slept: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)
        if len(slept) == 5:
            turn.add("delta", {"text": "b"})
        if len(slept) == 7:
            finish(turn)
        if len(slept) in {5, 7}:
            await worker.registry._flush()
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await other.follow(turn.id) == b"".join(turn.events)
    assert slept == [0.025, 0.05, 0.1, 0.2, 0.2, 0.025, 0.05]


async def test_another_worker_follows_a_running_turn_from_its_latest_event(
    worker: Worker, other: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = worker.start()
    await publish(worker)
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)
        if len(slept) == 3:
            finish(turn)
            await worker.registry._flush()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(remote_turns, "UNWRITTEN_S", -1)
    assert await other.follow(turn.id, 1) == turn.events[1]
    assert slept == [0.025, 0.05, 0.1]


async def test_a_client_that_has_the_last_event_before_redis_has_it_receives_no_stream(
    worker: Worker, other: Worker
) -> None:
    turn = worker.start()
    await publish(worker)
    finish(turn)
    following = asyncio.create_task(other.registry.follow(turn.id, 2))
    await other.batcher.transact([("PING",)])
    await publish(worker)
    assert await following is None


async def test_a_follower_waits_while_redis_is_unavailable(
    worker: Worker, other: Worker, clock: Clock
) -> None:
    turn = worker.start()
    await publish(worker)
    events = await other.registry.follow(turn.id)
    assert events is not None
    assert await anext(events) == turn.events[0]
    following = asyncio.ensure_future(anext(events))
    other.batcher.error = HistoryUnavailable("down")
    for _ in range(10):
        await clock.advance(1)
        await asyncio.sleep(0.001)
    assert not following.done()
    other.batcher.error = None
    finish(turn)
    await publish(worker)
    assert await asyncio.wait_for(following, 5) == turn.events[1]


async def test_a_follower_fails_if_redis_is_unavailable_for_fifteen_seconds(
    worker: Worker, other: Worker, clock: Clock
) -> None:
    turn = worker.start()
    await publish(worker)
    events = await other.registry.follow(turn.id)
    assert events is not None
    assert await anext(events) == turn.events[0]
    following = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    other.batcher.error = HistoryUnavailable("down")
    await clock.advance(OUTAGE_S - 1)
    await asyncio.sleep(0.001)
    assert not following.done()
    await clock.advance(1.1)
    with pytest.raises(HistoryUnavailable, match="down"):
        await asyncio.wait_for(following, 5)


async def test_each_successful_read_lets_a_follower_wait_as_long_again(
    worker: Worker, other: Worker, clock: Clock
) -> None:
    turn = worker.start()
    await publish(worker)
    events = await other.registry.follow(turn.id)
    assert events is not None
    assert await anext(events) == turn.events[0]
    following = asyncio.ensure_future(anext(events))
    polls = len(other.batcher.named("XRANGE"))
    await clock.advance(OUTAGE_S)

    async def has_polled_again() -> bool:
        return len(other.batcher.named("XRANGE")) > polls

    await wait_until(has_polled_again)
    other.batcher.error = HistoryUnavailable("down")
    await clock.advance(OUTAGE_S - 1)
    await asyncio.sleep(0.001)
    assert not following.done()
    following.cancel()


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
