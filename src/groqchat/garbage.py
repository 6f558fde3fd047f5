"""When Python's garbage collector runs: in quiet moments, not amid thousands of turns."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

# A turn makes hundreds of objects and hardly ever a cycle: a minute's cycles weigh little.
INTERVAL_S = 60.0
# With so few turns in flight a collection takes some ten milliseconds; with 5,000, 0.3 s.
QUIET_TURNS = 100
# Without a quiet moment, one is taken all the same after so many intervals.
MAX_PUT_OFF = 10


@asynccontextmanager
async def collected_when_quiet(in_flight: Callable[[], int]) -> AsyncIterator[None]:
    """Take collections into our own hands for as long as the block runs.

    At Python's own thresholds they take a tenth of the time and hold up everybody for up to
    0.3 s. What was made by now is left out of them.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    stop = asyncio.Event()
    task = asyncio.create_task(_collect(in_flight, stop))
    try:
        yield
    finally:
        stop.set()
        await task
        gc.enable()
        gc.unfreeze()


async def _collect(in_flight: Callable[[], int], stop: asyncio.Event) -> None:
    put_off = 0
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), INTERVAL_S)
        put_off += 1
        if not stop.is_set() and (in_flight() <= QUIET_TURNS or put_off >= MAX_PUT_OFF):
            gc.collect()
            put_off = 0
