"""Supervised background tasks: repeated work that runs until a block of code ends."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

# Long enough not to flood the log if each attempt fails.
FAILURE_DELAY_S = 1.0

log = logging.getLogger(__name__)


@asynccontextmanager
async def background_task(
    name: str,
    step: Callable[[], Awaitable[float]],
    *,
    first_delay_s: float = 0.0,
    failure_delay_s: float = FAILURE_DELAY_S,
) -> AsyncIterator[None]:
    """Call `step` repeatedly until the context exits.

    `step` returns the delay before its next call, in seconds. If it raises an exception, the
    exception is logged with its traceback and `step` is called again after `failure_delay_s`. When
    the context exits, a running step is cancelled.
    """
    stopping = asyncio.Event()
    task = asyncio.create_task(
        _repeat(name, step, stopping, delay_s=first_delay_s, failure_delay_s=failure_delay_s),
        name=name,
    )
    try:
        yield
    finally:
        # redis-py swallows a cancellation that arrives just after a command was sent. The event
        # makes sure that the task ends after this step in that case.
        stopping.set()
        task.cancel()
        await _wait_for_end(task)


async def _repeat(
    name: str,
    step: Callable[[], Awaitable[float]],
    stopping: asyncio.Event,
    *,
    delay_s: float,
    failure_delay_s: float,
) -> None:
    if delay_s:
        await asyncio.sleep(delay_s)
    while True:
        try:
            delay_s = await step()
        except asyncio.CancelledError:
            # A step may also await a future that another task cancelled.
            if stopping.is_set():
                raise
            delay_s = failure_delay_s
        except Exception:
            log.exception("background task %r failed; it runs again in %g s", name, failure_delay_s)
            delay_s = failure_delay_s
        if stopping.is_set():
            return
        await asyncio.sleep(delay_s)


async def _wait_for_end(task: asyncio.Task[None]) -> None:
    """Wait until a cancelled task has ended, even if the caller is cancelled meanwhile."""
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
            task.cancel()
    if cancellation is not None:
        raise cancellation
