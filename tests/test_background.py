"""Supervised background tasks: they repeat, survive failures, and end with their block."""

import asyncio
import logging

import pytest

from groqchat.background import FAILURE_DELAY_S, background_task

TIMEOUT_S = 5


class Delays:
    """Replaces asyncio.sleep: records the delays and waits for none of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[float] = []
        self._sleep = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", self._record)

    async def _record(self, delay_s: float) -> None:
        self.recorded.append(delay_s)
        await self._sleep(0)


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> Delays:
    """The delays between the steps of this test's tasks."""
    return Delays(monkeypatch)


class Steps:
    """A step that returns each of its results, then waits for ever; an exception is raised."""

    def __init__(self, *results: float | Exception) -> None:
        self.results = list(results)
        self.calls = 0
        self.exhausted = asyncio.Event()
        self.was_cancelled = False
        self.task_name = ""

    async def __call__(self) -> float:
        self.calls += 1
        task = asyncio.current_task()
        assert task is not None
        self.task_name = task.get_name()
        if not self.results:
            self.exhausted.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def wait(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self.exhausted.wait()


async def test_a_step_runs_again_after_the_delay_that_it_returns(delays: Delays) -> None:
    steps = Steps(0.5, 0, 60)
    async with background_task("name", steps):
        await steps.wait()
    assert steps.calls == 4
    assert delays.recorded == [0.5, 0, 60]


async def test_the_first_step_may_be_delayed(delays: Delays) -> None:
    steps = Steps(7)
    async with background_task("name", steps, first_delay_s=3):
        await steps.wait()
    assert delays.recorded == [3, 7]


async def test_the_first_step_runs_at_once_by_default(delays: Delays) -> None:
    steps = Steps()
    async with background_task("name", steps):
        await steps.wait()
    assert delays.recorded == []


async def test_a_failed_step_is_logged_and_runs_again(
    delays: Delays, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("reason")
    steps = Steps(error, 5)
    async with background_task("the name", steps):
        await steps.wait()

    assert delays.recorded == [FAILURE_DELAY_S, 5]
    [record] = caplog.records
    assert record.getMessage() == "background task 'the name' failed; it runs again in 1 s"
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_the_task_has_the_name_of_the_work() -> None:
    steps = Steps()
    async with background_task("prune", steps):
        await steps.wait()
    assert steps.task_name == "prune"


async def test_a_running_step_is_cancelled_at_the_end_of_the_block() -> None:
    steps = Steps()
    async with background_task("name", steps):
        await steps.wait()
    assert steps.was_cancelled
    assert [task for task in asyncio.all_tasks() if task.get_name() == "name"] == []


async def test_a_delay_ends_with_the_block() -> None:
    async def step() -> float:
        called.set()
        return 3600

    called = asyncio.Event()
    async with asyncio.timeout(TIMEOUT_S), background_task("name", step):
        await called.wait()
    async with asyncio.timeout(TIMEOUT_S), background_task("name", step, first_delay_s=3600):
        pass


async def test_a_step_that_swallows_its_cancellation_is_the_last_one(delays: Delays) -> None:
    calls = 0
    called = asyncio.Event()

    async def step() -> float:
        nonlocal calls
        calls += 1
        called.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 0
        return 0

    async with asyncio.timeout(TIMEOUT_S), background_task("name", step):
        await called.wait()
    assert calls == 1
    assert delays.recorded == []


async def test_a_step_that_fails_after_its_cancellation_is_the_last_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called = asyncio.Event()

    async def step() -> float:
        called.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError

    async with asyncio.timeout(TIMEOUT_S), background_task("name", step):
        await called.wait()
    assert len(caplog.records) == 1


async def test_an_error_of_the_block_is_raised_after_the_task_has_ended() -> None:
    steps = Steps()

    async def fail() -> None:
        async with background_task("name", steps):
            await steps.wait()
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert steps.was_cancelled


async def test_a_cancellation_of_the_caller_is_not_swallowed() -> None:
    steps = Steps()

    async def caller() -> None:
        async with background_task("name", steps):
            await asyncio.Event().wait()

    task = asyncio.create_task(caller())
    await steps.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps.was_cancelled


async def test_a_cancellation_during_the_end_of_the_block_is_not_swallowed() -> None:
    cancelled, release = asyncio.Event(), asyncio.Event()

    async def step() -> float:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            await release.wait()
        return 0

    async def caller() -> None:
        async with background_task("slow to end", step):
            await asyncio.sleep(0)

    task = asyncio.create_task(caller())
    async with asyncio.timeout(TIMEOUT_S):
        await cancelled.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        while any(task.get_name() == "slow to end" for task in asyncio.all_tasks()):
            await asyncio.sleep(0)


async def test_a_step_that_awaits_a_cancelled_future_runs_again(delays: Delays) -> None:
    future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    future.cancel()
    steps = Steps()

    async def step() -> float:
        return await future if steps.calls == 1 else await steps()

    steps.calls = 1
    async with background_task("work", step, failure_delay_s=7):
        while not delays.recorded:
            await asyncio.sleep(0)
        steps.calls = 2
        await steps.wait()
    assert 7 in delays.recorded


async def test_the_delay_after_a_failure_can_be_chosen(delays: Delays) -> None:
    steps = Steps(ValueError("broken"))
    async with background_task("work", steps, failure_delay_s=30):
        await steps.wait()
    assert delays.recorded == [30]
