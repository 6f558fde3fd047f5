"""The turn limiter: the number of concurrent turns, and the drain at shutdown."""

import asyncio
import gc
import logging
import weakref

import pytest

from groqchat.errors import Overloaded, ShuttingDown
from groqchat.services.turns.limiter import TurnLimiter
from tests.support.clock import Clock
from tests.support.limiter import Drain, Turns, assert_free, assert_full, start_task

LOGGER = "groqchat.services.turns.limiter"


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's event loop."""
    return Clock(monkeypatch)


async def test_the_limit_counts_turns_of_both_kinds() -> None:
    limiter = TurnLimiter(2)
    turns = Turns(limiter)
    assert_free(limiter, running=0)
    plain = await start_task(turns.plain())
    assert_free(limiter, running=1)
    own_task = turns.start(turns.ended)
    assert_full(limiter, running=2)
    with pytest.raises(Overloaded):
        await turns.plain()
    assert len(limiter) == 2

    turns.ended.set()
    assert await plain == await own_task == "complete"
    assert_free(limiter, running=0)


async def test_a_failed_turn_is_not_counted() -> None:
    limiter = TurnLimiter(1)

    def fail_within_a_turn() -> None:
        with limiter:
            assert_full(limiter, running=1)
            raise ValueError("its own error")

    with pytest.raises(ValueError, match="its own error"):
        fail_within_a_turn()
    assert_free(limiter, running=0)


async def test_a_turn_whose_request_is_cancelled_is_cancelled() -> None:
    limiter = TurnLimiter(1)
    plain = await start_task(Turns(limiter).plain())
    plain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await plain
    assert plain.cancelled()
    assert_free(limiter, running=0)


async def test_a_turn_outside_a_task_is_an_error() -> None:
    limiter = TurnLimiter(1)
    errors: asyncio.Queue[str] = asyncio.Queue()

    def run_turn() -> None:
        try:
            with limiter:
                errors.put_nowait("none")
        except RuntimeError as error:
            errors.put_nowait(str(error))

    asyncio.get_running_loop().call_soon(run_turn)
    assert await errors.get() == "a turn must run in a task"
    assert_free(limiter, running=0)


async def test_a_drain_without_turns_ends_at_once_and_rejects_new_turns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    limiter = TurnLimiter(1)
    drain = Drain(limiter, 20, lambda: None)
    await asyncio.wait_for(drain.task, 5)
    assert drain.stops == 1
    with pytest.raises(ShuttingDown):
        limiter.check()
    with pytest.raises(ShuttingDown):
        await Turns(limiter).plain()
    assert caplog.messages == []


async def test_a_drain_waits_for_turns_that_end_within_the_grace_period(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    limiter = TurnLimiter(5)
    turns = Turns(limiter)
    running = [await start_task(turns.plain()), turns.start(turns.ended)]
    drain = Drain(limiter, 20, turns.stopped.set)
    await clock.advance(17)
    assert drain.stops == 0
    with pytest.raises(ShuttingDown):
        limiter.check()
    turns.ended.set()
    await drain.task
    assert await asyncio.gather(*running) == ["complete", "complete"]
    assert (drain.stops, turns.cancellations, len(limiter)) == (1, 0, 0)
    assert caplog.record_tuples == [(LOGGER, logging.INFO, "waiting for 2 turn(s) and follower(s)")]


@pytest.mark.parametrize(("grace_s", "stop_at_s"), [(20, 18), (8, 6), (4, 3)])
async def test_turns_with_a_task_are_stopped_early_enough_to_store_their_answers(
    clock: Clock, caplog: pytest.LogCaptureFixture, grace_s: float, stop_at_s: float
) -> None:
    limiter = TurnLimiter(5)
    turns = Turns(limiter)
    stopped = turns.start(turns.stopped)
    plain = await start_task(turns.plain())
    drain = Drain(limiter, grace_s, turns.stopped.set)
    await clock.advance(0)
    await clock.advance(stop_at_s - 0.5)
    assert drain.stops == 0
    await clock.advance(0.5)
    assert drain.stops == 1
    assert await stopped == "complete"
    # The other turns do not wait until the end of the grace period.
    assert plain.done()
    with pytest.raises(ShuttingDown):
        await plain
    # The cancellation became an error: the task of the request is not cancelled.
    assert (plain.cancelled(), plain.cancelling()) == (False, 0)
    await asyncio.wait_for(drain.task, 5)
    assert (turns.cancellations, len(limiter)) == (1, 0)
    assert caplog.messages == ["stopping 2 turn(s) and follower(s)"]


@pytest.mark.parametrize(("grace_s", "storing_s"), [(20, 2), (4, 1)])
async def test_a_stopped_turn_is_cancelled_at_the_end_of_the_grace_period(
    clock: Clock, grace_s: float, storing_s: float
) -> None:
    limiter = TurnLimiter(5)
    turns = Turns(limiter)
    turn = turns.start(asyncio.Event())
    drain = Drain(limiter, grace_s, turns.stopped.set)
    await clock.advance(0)
    await clock.advance(grace_s - storing_s)
    assert (drain.stops, turn.done()) == (1, False)
    await clock.advance(storing_s - 0.5)
    assert not turn.done()
    await clock.advance(0.5)
    assert turn.cancelled()
    await asyncio.wait_for(drain.task, 5)


@pytest.mark.parametrize(("ignored", "cancellations"), [(0, 1), (4, 5), (9, 5)])
async def test_a_turn_that_ignores_its_cancellation_is_cancelled_again_up_to_five_times(
    clock: Clock, ignored: int, cancellations: int
) -> None:
    limiter = TurnLimiter(1)
    turns = Turns(limiter)
    plain = await start_task(turns.plain(ignored))
    drain = Drain(limiter, 0, turns.stopped.set)
    await clock.advance(0)
    for attempt in range(1, cancellations + 1):
        assert turns.cancellations == attempt
        await clock.advance(0.2)
        assert turns.cancellations == attempt
        assert drain.task.done() is (ignored < attempt)
        await clock.advance(0.3)
    await asyncio.wait_for(drain.task, 5)
    if ignored < 5:
        with pytest.raises(ShuttingDown):
            await plain
    else:
        turns.ended.set()
        assert await plain == "complete"
    assert turns.cancellations == cancellations
    assert len(limiter) == 0


async def test_the_own_error_of_a_late_turn_propagates(clock: Clock) -> None:
    limiter = TurnLimiter(1)

    async def fail_when_cancelled() -> str:
        with limiter:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ValueError("the turn's own error") from None
        return "complete"

    failing = await start_task(fail_when_cancelled())
    drain = Drain(limiter, 0, lambda: None)
    await clock.advance(0)
    with pytest.raises(ValueError, match="the turn's own error"):
        await failing
    await asyncio.wait_for(drain.task, 5)


async def test_a_follower_sends_the_last_event_of_a_turn_that_was_cancelled(clock: Clock) -> None:
    limiter = TurnLimiter(1)
    turns = Turns(limiter)
    sending = asyncio.Event()

    async def follow() -> str:
        with limiter.following():
            turn = turns.start(asyncio.Event())
            await asyncio.wait([turn])
            await sending.wait()
        return "the last event"

    following = await start_task(follow())
    drain = Drain(limiter, 0, lambda: None)
    await clock.advance(0)
    assert turns.cancellations == 1
    await clock.advance(0.4)
    sending.set()
    assert await following == "the last event"
    await asyncio.wait_for(drain.task, 5)


async def test_a_request_whose_turn_was_cancelled_can_still_send_its_response(
    clock: Clock,
) -> None:
    limiter = TurnLimiter(1)
    is_sent = asyncio.Event()

    async def handle_request() -> str:
        try:
            with limiter:
                await asyncio.Event().wait()
        except ShuttingDown:
            await is_sent.wait()
        return "the error response"

    handling = await start_task(handle_request())
    drain = Drain(limiter, 0, lambda: None)
    await clock.advance(0)
    for _ in range(2):
        assert (len(limiter), handling.done()) == (0, False)
        await clock.advance(0.5)
    is_sent.set()
    assert await handling == "the error response"
    await asyncio.wait_for(drain.task, 5)


@pytest.mark.parametrize("is_plain", [True, False])
async def test_the_limiter_does_not_reference_the_tasks_of_past_turns(
    clock: Clock, *, is_plain: bool
) -> None:
    limiter = TurnLimiter(1)

    async def start_turn() -> weakref.ref[asyncio.Task[str]]:
        turns = Turns(limiter)
        task = await start_task(turns.plain()) if is_plain else turns.start(turns.ended)
        await asyncio.sleep(0)
        return weakref.ref(task)

    turn = await start_turn()
    assert turn() is not None
    await asyncio.wait_for(Drain(limiter, 0, lambda: None).task, 5)
    await clock.advance(0)
    gc.collect()
    assert turn() is None
