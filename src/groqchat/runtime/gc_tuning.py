"""Tuning of Python's garbage collector: fewer collections, full ones preferably at low load."""

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from groqchat.background import background_task
from groqchat.runtime.freed_memory import return_free_memory

# With Python's own thresholds (700, 10, 10), collections take a tenth of the CPU time. A turn
# creates about a hundred tracked objects, frees most of them and hardly ever creates a cycle. With
# these thresholds, a young collection runs every few hundred turns and takes milliseconds. Objects
# that survive it, for example those of thousands of concurrent turns, wait for a full collection.
THRESHOLDS = (5_000, 1000, 1000)
FULL_COLLECTION_INTERVAL_S = 60.0
# With this number of running turns, a full collection takes about ten milliseconds; with 5,000,
# 0.3 s.
LOW_LOAD_TURNS = 100
# Under constant load, a full collection runs after this number of intervals.
MAX_POSTPONED = 10


@asynccontextmanager
async def tuned_gc(running_turns: Callable[[], int]) -> AsyncIterator[None]:
    """Collect young objects less often, and all objects preferably at low load.

    Applies until the context exits.

    A full collection blocks the event loop for up to 0.3 s. Objects that exist already are
    excluded from all collections.
    """
    before = gc.get_threshold()
    apply_thresholds()
    postponed = 0

    async def collect_at_low_load() -> float:
        nonlocal postponed
        postponed += 1
        if running_turns() <= LOW_LOAD_TURNS or postponed >= MAX_POSTPONED:
            gc.collect()
            return_free_memory()
            postponed = 0
        return FULL_COLLECTION_INTERVAL_S

    try:
        async with background_task(
            "collect garbage", collect_at_low_load, first_delay_s=FULL_COLLECTION_INTERVAL_S
        ):
            yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def apply_thresholds() -> None:
    """Exclude existing objects from collections and set the thresholds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
