"""Retries: the number of attempts and the delays between them."""

import asyncio
import random
from typing import Any

import pytest

from groqchat.retry import Backoff, Deadline, Deadlines, RetryPolicy

BACKOFF = Backoff(base_s=0.5, cap_s=3.0)


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays that the test would have waited for."""
    recorded: list[float] = []

    async def sleep(delay_s: float) -> None:
        recorded.append(delay_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return recorded


@pytest.fixture
async def callback_errors() -> list[dict[str, Any]]:
    """The errors of timers, which the event loop only logs."""
    recorded: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: recorded.append(context))
    return recorded


def test_delays_double_up_to_their_cap() -> None:
    assert [BACKOFF.delay_s(attempt) for attempt in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_high_attempt_does_not_overflow() -> None:
    assert Backoff(base_s=1.0, cap_s=1e300).delay_s(10_000) == 2.0**32
    assert Backoff(base_s=1.0, cap_s=1e300).delay_s(31) == 2.0**31
    assert BACKOFF.delay_s(10_000) == 3.0


def test_jitter_lengthens_a_delay_by_a_random_share(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = Backoff(base_s=2.0, cap_s=5.0, jitter=0.25)
    monkeypatch.setattr(random, "uniform", lambda low, _high: low)
    assert [backoff.delay_s(attempt) for attempt in range(3)] == [2.0, 4.0, 5.0]
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    assert [backoff.delay_s(attempt) for attempt in range(3)] == [2.5, 5.0, 6.25]


async def test_the_last_attempt_is_not_followed_by_a_delay(delays: list[float]) -> None:
    policy = RetryPolicy(attempts=3, backoff=BACKOFF)
    assert [await policy.wait(attempt) for attempt in range(4)] == [True, True, False, False]
    assert delays == [0.5, 1.0]


async def test_a_single_attempt_is_not_repeated(delays: list[float]) -> None:
    assert await RetryPolicy(attempts=1, backoff=BACKOFF).wait(0) is False
    assert delays == []


@pytest.mark.parametrize("delay_s", [0.0, 7.0])
async def test_the_caller_may_replace_the_delay(delays: list[float], delay_s: float) -> None:
    policy = RetryPolicy(attempts=2, backoff=BACKOFF)
    assert await policy.wait(0, delay_s=delay_s) is True
    assert await policy.wait(1, delay_s=delay_s) is False
    assert delays == [delay_s]


async def test_a_deadline_belongs_to_a_task() -> None:
    deadline = Deadlines(5).start()
    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def enter() -> None:
        try:
            deadline.__enter__()
        except RuntimeError as error:
            failed.set_result(str(error))

    asyncio.get_running_loop().call_soon(enter)
    assert await failed == "a deadline works only inside a task"


async def test_a_deadline_keeps_the_error_that_the_interruption_caused() -> None:
    with pytest.raises(TimeoutError) as caught, Deadlines(0.001).start():
        await asyncio.Event().wait()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_a_block_that_turns_its_interruption_into_another_error_raises_that_error() -> None:
    with pytest.raises(KeyError):
        await fail_when_interrupted()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def fail_when_interrupted() -> None:
    with Deadlines(0.001).start():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError from None


async def test_a_deadline_works_in_a_task_that_is_being_cancelled() -> None:
    """A cleanup after a cancellation may have a deadline of its own."""
    started = asyncio.Event()
    outcome: list[str] = []

    async def work() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            try:
                with Deadlines(0.001).start():
                    await asyncio.Event().wait()
            except TimeoutError:
                outcome.append("timeout")

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcome == ["timeout"]


async def test_one_timer_serves_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(60)
    timers: list[float] = []
    call_at = loop.call_at

    def counted(when: float, callback: object, *args: object) -> asyncio.TimerHandle:
        timers.append(when)
        handle = call_at(when, lambda: None)
        handle.cancel()
        return handle

    monkeypatch.setattr(loop, "call_at", counted)
    with deadlines.start() as first:
        for _ in range(10):
            with deadlines.start():
                pass
    assert timers == [first.when]


async def test_blocks_end_in_the_order_in_which_they_began(
    callback_errors: list[dict[str, Any]],
) -> None:
    deadlines = Deadlines(0.1)
    ended: list[float] = []

    async def block(deadline: Deadline) -> None:
        with pytest.raises(TimeoutError), deadline:
            await asyncio.Event().wait()
        assert deadline.left_s <= 0
        ended.append(deadline.when)

    started: list[Deadline] = []
    for _ in range(4):
        started.append(deadlines.start())
        await asyncio.sleep(0.02)
    # No block begins after the first one has ended: only the timer can end the others.
    async with asyncio.timeout(5):
        await asyncio.gather(*map(block, started))
    assert ended == [deadline.when for deadline in started]
    assert callback_errors == []


async def test_a_block_that_ended_in_time_is_not_interrupted_later(
    callback_errors: list[dict[str, Any]],
) -> None:
    deadlines = Deadlines(0.01)
    with deadlines.start():
        pass
    with pytest.raises(TimeoutError), deadlines.start():
        await asyncio.Event().wait()
    assert callback_errors == []


async def test_an_inner_deadline_does_not_end_the_outer_block() -> None:
    with Deadlines(60).start() as outer:
        with pytest.raises(TimeoutError), Deadlines(0.001).start():
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        assert outer.left_s > 0
