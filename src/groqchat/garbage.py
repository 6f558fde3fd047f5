"""When Python's garbage collector runs: less often, and over everything in quiet moments only."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

# At Python's own thresholds (700, 10, 10) collections take a tenth of the time. A turn makes some
# hundred objects that count and hardly ever a cycle, one that fails a few cycles: the young ones
# are looked at every few hundred turns, which takes milliseconds. Those that were alive then, as
# with thousands of turns in flight many are, wait for a quiet moment.
THRESHOLDS = (5_000, 1000, 1000)
# What has grown old is looked at so often.
INTERVAL_S = 60.0
# With so few turns in flight a collection takes some ten milliseconds; with 5,000, 0.3 s.
QUIET_TURNS = 100
# Without a quiet moment, one is taken all the same after so many intervals.
MAX_PUT_OFF = 10


@asynccontextmanager
async def collected_when_quiet(in_flight: Callable[[], int]) -> AsyncIterator[None]:
    """Collect what is young less often, and all in quiet moments, for as long as the block runs.

    A collection of everything holds up everybody for up to 0.3 s. What was made by now is left
    out of all of them.
    """
    before = gc.get_threshold()
    relax()
    stop = asyncio.Event()
    task = asyncio.create_task(_collect(in_flight, stop))
    try:
        yield
    finally:
        stop.set()
        await task
        gc.set_threshold(*before)
        gc.unfreeze()


def relax() -> None:
    """Leave out of collections what was made by now, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


async def _collect(in_flight: Callable[[], int], stop: asyncio.Event) -> None:
    put_off = 0
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), INTERVAL_S)
        put_off += 1
        if not stop.is_set() and (in_flight() <= QUIET_TURNS or put_off >= MAX_PUT_OFF):
            gc.collect()
            put_off = 0
