"""Deadlines: time limits of many blocks of code with one timer."""

import asyncio
import gc

import pytest

from groqchat.retry import Deadlines
from tests.support.garbage import no_gc

SHORT_S = 0.05


async def wait_within(deadlines: Deadlines, event: asyncio.Event) -> str:
    with deadlines.start():
        await event.wait()
    return "done"


async def test_a_block_over_its_deadline_raises_timeout_error() -> None:
    with pytest.raises(TimeoutError):
        await wait_within(Deadlines(SHORT_S), asyncio.Event())


async def test_a_block_within_its_deadline_is_not_interrupted() -> None:
    deadlines, event = Deadlines(SHORT_S), asyncio.Event()
    event.set()
    assert await wait_within(deadlines, event) == "done"
    await asyncio.sleep(2 * SHORT_S)


async def test_the_time_limit_of_each_block_starts_with_the_block() -> None:
    deadlines, event = Deadlines(4 * SHORT_S), asyncio.Event()
    loop = asyncio.get_running_loop()
    ended: list[tuple[int, float]] = []

    async def timed(number: int) -> None:
        started = loop.time()
        with pytest.raises(TimeoutError):
            await wait_within(deadlines, event)
        ended.append((number, loop.time() - started))

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(timed(number))
            await asyncio.sleep(SHORT_S)

    assert [number for number, _ in ended] == [0, 1, 2, 3, 4]
    assert all(duration_s >= 4 * SHORT_S for _, duration_s in ended)


async def test_a_block_after_an_idle_period_times_out_too() -> None:
    deadlines, never = Deadlines(SHORT_S), asyncio.Event()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await wait_within(deadlines, never)
        await asyncio.sleep(1.5 * SHORT_S)


async def test_a_block_that_ends_early_does_not_change_the_deadline_of_an_older_block() -> None:
    deadlines, event, never = Deadlines(2 * SHORT_S), asyncio.Event(), asyncio.Event()
    oldest = asyncio.create_task(wait_within(deadlines, never))
    other = asyncio.create_task(wait_within(deadlines, event))
    await asyncio.sleep(0)
    event.set()

    assert await other == "done"
    with pytest.raises(TimeoutError):
        await oldest


async def test_a_cancellation_from_outside_raises_cancelled_error() -> None:
    task = asyncio.create_task(wait_within(Deadlines(5), asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_at_the_same_time_as_the_deadline_is_not_lost() -> None:
    async def cancel_during_timeout() -> None:
        with Deadlines(SHORT_S).start():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                # The second cancellation arrives before the block has ended.
                task.cancel()
                raise

    task = asyncio.create_task(cancel_during_timeout())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_exception_of_the_block_is_not_replaced() -> None:
    deadlines = Deadlines(SHORT_S)
    with pytest.raises(KeyError), deadlines.start():
        raise KeyError
    await asyncio.sleep(2 * SHORT_S)


async def test_after_a_timeout_the_task_is_not_marked_as_cancelled() -> None:
    with pytest.raises(TimeoutError):
        await wait_within(Deadlines(SHORT_S), asyncio.Event())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_the_remaining_time_decreases() -> None:
    with Deadlines(5).start() as deadline:
        first = deadline.left_s
        await asyncio.sleep(SHORT_S)
        assert 5 >= first > deadline.left_s > 4


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_failed_block_creates_no_reference_cycle(*, is_late: bool) -> None:
    deadlines = Deadlines(0.001 if is_late else 5)

    async def fail() -> None:
        with deadlines.start() as deadline:
            if is_late:
                await asyncio.Event().wait()
            raise TimeoutError(deadline.left_s)

    async def run() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        assert isinstance(task.exception(), TimeoutError)

    await run()
    with no_gc():
        for _ in range(50):
            await run()
        assert gc.collect() < 50
