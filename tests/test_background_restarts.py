"""Each background task of the service runs again after it has failed once."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from groqchat.http.event_stream import EventStreams
from groqchat.runtime import gc_tuning
from groqchat.runtime.connections import Connections
from groqchat.services.groq import model_catalog
from groqchat.services.groq.model_catalog import ModelCatalog
from groqchat.services.turns.registry import TurnRegistry
from groqchat.storage import keys
from groqchat.storage.session_index import SessionIndex
from tests.conftest import Serve
from tests.support.events import all_events
from tests.support.streams import start_stream, wait_until

STEPS: tuple[tuple[type[Any], str], ...] = (
    (EventStreams, "_inspect_all"),
    (TurnRegistry, "_publish"),
    (ModelCatalog, "_refresh_step"),
    (Connections, "_inspect_all"),
    (SessionIndex, "prune"),
)
NAMES = (
    "check open streams",
    "publish the events of turns",
    "refresh the list of models",
    "check open connections",
    "prune the session index",
)


def failing_once(step: Callable[..., Any], name: str, calls: Counter[str]) -> Callable[..., Any]:
    """Return a step that raises an error in its first call."""

    async def run(*arguments: Any) -> Any:
        calls[name] += 1
        if calls[name] == 1:
            raise RuntimeError("a defect")
        return await step(*arguments)

    return run


async def test_every_background_task_of_the_service_runs_again_after_a_failure(
    serve: Serve, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_catalog, "RETRY_S", 0.1)
    calls: Counter[str] = Counter()
    for owner, name in STEPS:
        step = failing_once(getattr(owner, name), f"{owner.__name__}.{name}", calls)
        monkeypatch.setattr(owner, name, step)
    api = await serve()

    async def have_run_again() -> bool:
        return len(calls) == len(STEPS) and min(calls.values()) > 1

    await wait_until(have_run_again)
    failed = {record.args[0] for record in caplog.records if isinstance(record.args, tuple)}
    assert failed >= set(NAMES)
    response, start = await start_stream(api)
    await all_events(response)

    async def is_published() -> bool:
        return await redis.ttl(keys.turn_key(start.data["turn_id"])) > keys.TURN_LEASE_S

    await wait_until(is_published)


async def test_garbage_is_collected_again_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gc_tuning, "FULL_COLLECTION_INTERVAL_S", 0.01)
    calls = 0

    def running_turns() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a defect")
        return gc_tuning.LOW_LOAD_TURNS + 1

    async def has_run_again() -> bool:
        return calls > 1

    async with gc_tuning.tuned_gc(running_turns):
        await wait_until(has_run_again)
    assert "background task 'collect garbage' failed" in caplog.text
