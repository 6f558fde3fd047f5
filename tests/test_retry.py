"""Time limits that share a timer end what takes too long, and nothing else."""

import asyncio
import gc

import pytest

from groqchat.retry import Deadlines

SHORT_S = 0.05


async def wait_within(deadlines: Deadlines, event: asyncio.Event) -> str:
    with deadlines.start():
        await event.wait()
    return "done"


async def test_what_takes_too_long_ends_with_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        await wait_within(Deadlines(SHORT_S), asyncio.Event())


async def test_what_ends_in_time_is_left_alone() -> None:
    deadlines, event = Deadlines(SHORT_S), asyncio.Event()
    event.set()
    assert await wait_within(deadlines, event) == "done"
    await asyncio.sleep(2 * SHORT_S)


async def test_each_block_has_the_whole_time_from_its_own_beginning() -> None:
    deadlines, event = Deadlines(4 * SHORT_S), asyncio.Event()
    loop = asyncio.get_running_loop()
    ended: list[tuple[int, float]] = []

    async def timed(number: int) -> None:
        began = loop.time()
        with pytest.raises(TimeoutError):
            await wait_within(deadlines, event)
        ended.append((number, loop.time() - began))

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(timed(number))
            await asyncio.sleep(SHORT_S)

    assert [number for number, _ in ended] == [0, 1, 2, 3, 4]
    assert all(took >= 4 * SHORT_S for _, took in ended)


async def test_blocks_after_a_pause_are_watched_over_again() -> None:
    deadlines, never = Deadlines(SHORT_S), asyncio.Event()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await wait_within(deadlines, never)
        await asyncio.sleep(1.5 * SHORT_S)


async def test_one_that_ends_before_the_oldest_is_forgotten() -> None:
    deadlines, event, never = Deadlines(2 * SHORT_S), asyncio.Event(), asyncio.Event()
    oldest = asyncio.create_task(wait_within(deadlines, never))
    other = asyncio.create_task(wait_within(deadlines, event))
    await asyncio.sleep(0)
    event.set()

    assert await other == "done"
    with pytest.raises(TimeoutError):
        await oldest


async def test_a_cancellation_from_elsewhere_goes_on_as_one() -> None:
    task = asyncio.create_task(wait_within(Deadlines(5), asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_meets_the_deadline_is_not_swallowed() -> None:
    async def give_way() -> None:
        with Deadlines(SHORT_S).start():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                # The other comes while the block still ends.
                task.cancel()
                raise

    task = asyncio.create_task(give_way())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_block_is_its_own() -> None:
    deadlines = Deadlines(SHORT_S)
    with pytest.raises(KeyError), deadlines.start():
        raise KeyError
    await asyncio.sleep(2 * SHORT_S)


async def test_the_task_goes_on_as_if_nothing_had_been() -> None:
    with pytest.raises(TimeoutError):
        await wait_within(Deadlines(SHORT_S), asyncio.Event())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_the_time_left_grows_less() -> None:
    with Deadlines(5).start() as deadline:
        first = deadline.left_s
        await asyncio.sleep(SHORT_S)
        assert 5 >= first > deadline.left_s > 4


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_task_that_fails_leaves_nothing_for_the_garbage_collector(*, is_late: bool) -> None:
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
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            await run()
        assert gc.collect() < 50
    finally:
        gc.enable()
