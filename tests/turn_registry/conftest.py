"""Two workers whose turn registries share one database."""

from collections.abc import AsyncIterator

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from tests.support.clock import Clock
from tests.support.turn_workers import RECORD, RECORD_VALUE, Worker


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's event loop."""
    return Clock(monkeypatch)


@pytest.fixture
async def fake_redis() -> AsyncIterator[FakeAsyncRedis]:
    """A database of fakeredis that contains only the record of an Idempotency-Key."""
    async with FakeAsyncRedis(server=FakeServer()) as client:
        await client.set(RECORD, RECORD_VALUE)
        yield client


@pytest.fixture
async def worker(fake_redis: FakeAsyncRedis) -> Worker:
    """The worker that runs the turns; it publishes nothing by itself."""
    return Worker(fake_redis)


@pytest.fixture
async def other(fake_redis: FakeAsyncRedis) -> Worker:
    """Another worker on `fake_redis`."""
    return Worker(fake_redis)


@pytest.fixture
async def publishing(worker: Worker) -> AsyncIterator[Worker]:
    """The worker that runs the turns, and publishes their events."""
    async with worker.registry.publishing():
        yield worker
