"""The turn registry: turns of this worker and of others, their events in Redis, stop requests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import Redis

from groqchat.errors import HistoryFailed, HistoryUnavailable, StorageError, TurnLost, TurnNotFound
from groqchat.services.turns import registry as registry_module
from groqchat.services.turns.registry import TurnRegistry, last_events
from groqchat.services.turns.turn import Turn
from groqchat.sse import MAX_WRITE_BYTES
from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.keys import Command
from groqchat.storage.message_ids import MICROS_DIGITS, micros_of, new_message_id
from tests.support.streams import wait_until

DONE = {"message": "Hi", "finish_reason": "stop"}
STOPPED = {"message": "", "finish_reason": "stopped"}


class Clock:
    """The time of the event loop, which a test can move forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real_time = loop.time
        self._offset_s = 0.0
        monkeypatch.setattr(loop, "time", lambda: real_time() + self._offset_s)

    async def advance(self, seconds: float) -> None:
        """Move the time forward and run everything that is due."""
        self._offset_s += seconds
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's event loop."""
    return Clock(monkeypatch)


class RecordingBatcher(CommandBatcher):
    """A command batcher that records its commands; `error` makes every transaction fail.

    `rejected` is the id of a turn whose events Redis rejects.
    """

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, timeout_s=5)
        self.commands: list[Command] = []
        self.transactions: list[list[Command]] = []
        self.error: StorageError | None = None
        self.rejected = ""

    def transact(self, commands: Sequence[Command]) -> Any:
        if self.error is not None:
            raise self.error
        writes = [command for command in commands if command[0] == "XADD"]
        if self.rejected and any(self.rejected in str(command[1]) for command in writes):
            raise HistoryFailed("rejected")
        self.commands += commands
        self.transactions.append(list(commands))
        return super().transact(commands)

    def named(self, *name: object) -> list[Command]:
        """Return the commands that start with these words."""
        return [command for command in self.commands if command[: len(name)] == name]


class Worker:
    """The turn registry of one worker."""

    def __init__(self, redis: Redis) -> None:
        self.batcher = RecordingBatcher(redis)
        self.registry = TurnRegistry(EventLog(self.batcher), lambda error: {"error": str(error)})

    def start(self, turn_id: str | None = None, **kind: bool) -> Turn:
        """Start a turn with its `start` event."""
        turn = Turn(turn_id or new_message_id(), "s", **kind)
        turn.add("start", {"turn_id": turn.id})
        self.registry.add(turn)
        return turn

    async def follow(self, turn_id: str, after: int = 0) -> bytes | None:
        """Return the events of a turn, which must end; None if there are none after a number."""
        async with asyncio.timeout(10):
            events = await self.registry.follow(turn_id, after)
            if events is None:
                return None
            return b"".join([each async for each in events])

    async def published(self, turn_id: str) -> bytes:
        """Return the events of a turn that are in Redis."""
        found = await EventLog(self.batcher).read(turn_id, 0)
        return found.events


@pytest.fixture
async def fake_redis() -> AsyncIterator[FakeAsyncRedis]:
    """An empty database of fakeredis."""
    async with FakeAsyncRedis(server=FakeServer()) as client:
        yield client


@pytest.fixture
async def worker(fake_redis: FakeAsyncRedis) -> Worker:
    """The worker that runs the turns; it publishes nothing by itself."""
    return Worker(fake_redis)


@pytest.fixture
async def other(fake_redis: FakeAsyncRedis) -> Worker:
    """Another worker on `fake_redis`."""
    return Worker(fake_redis)


@pytest.fixture
async def publishing(worker: Worker) -> AsyncIterator[Worker]:
    """The worker that runs the turns, and publishes their events."""
    async with worker.registry.publishing():
        yield worker


async def publish(worker: Worker) -> None:
    """Publish the events that are not in Redis yet."""
    async with worker.registry.publishing():
        pass


def finish(turn: Turn, data: dict[str, Any] | None = None) -> None:
    turn.add("done", DONE if data is None else data)
    turn.end()


def old_id(age_s: float) -> str:
    """Return the id of a turn that started this long ago."""
    new = new_message_id()
    return f"{micros_of(new) - int(age_s * 1_000_000):013x}{new[MICROS_DIGITS:]}"


# Following a turn


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
    assert 36 <= len(slept) <= 40
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
    assert await other.follow(turn.id, 1) == turn.events[1]
    assert slept == [0.025, 0.05, 0.1]


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


async def test_a_follower_fails_if_redis_is_unavailable_for_the_time_of_a_lease(
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
    await clock.advance(keys.TURN_LEASE_S - 1)
    await asyncio.sleep(0.001)
    assert not following.done()
    await clock.advance(1.1)
    with pytest.raises(HistoryUnavailable, match="down"):
        await asyncio.wait_for(following, 5)


async def test_each_successful_read_lets_a_follower_wait_for_a_further_lease(
    worker: Worker, other: Worker, clock: Clock
) -> None:
    turn = worker.start()
    await publish(worker)
    events = await other.registry.follow(turn.id)
    assert events is not None
    assert await anext(events) == turn.events[0]
    following = asyncio.ensure_future(anext(events))
    polls = len(other.batcher.named("XRANGE"))
    await clock.advance(keys.TURN_LEASE_S)

    async def has_polled_again() -> bool:
        return len(other.batcher.named("XRANGE")) > polls

    await wait_until(has_polled_again)
    other.batcher.error = HistoryUnavailable("down")
    await clock.advance(keys.TURN_LEASE_S - 1)
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


# Stopping a turn


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


async def has_no_turns(worker: Worker) -> bool:
    return not worker.registry._local


async def is_published(worker: Worker, turn: Turn) -> bool:
    return await worker.published(turn.id) == b"".join(turn.events)


# Publishing events


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
    message = "other workers cannot follow the turns of this worker: down"
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
    assert caplog.messages == [f"events of turn {rejected.id} were not stored: rejected"]
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


# Removing finished turns


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
