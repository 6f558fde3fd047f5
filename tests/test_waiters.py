"""Requests that wait for a turn with an Idempotency-Key on a worker that dies."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.services.turns import waiters
from groqchat.storage import keys
from tests.conftest import Serve
from tests.support.events import all_events
from tests.support.groq import MockGroq
from tests.support.service import Service
from tests.support.streams import history, wait_until
from tests.test_idempotency_waiters import CANCEL, STREAM, open_stream


@pytest.fixture
async def dying(redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[Service, ClientSession]]:
    """A worker in its own process, which the test kills, and a client of it."""
    with Service(tmp_path, REDIS_URL=redis_url, GROQ_BASE_URL="offline:") as service:
        async with ClientSession(service.url) as client:
            yield service, client


@pytest.fixture(autouse=True)
def short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiters, "RENEWAL_S", 0.05)


async def expire_lease(redis: Redis, count: int) -> None:
    """Delete the leases of all workers; only a running worker renews its lease."""
    names = await redis.keys(f"{keys.WORKER_PREFIX}*")
    assert len(names) == count
    for name in names:
        assert 0 < await redis.ttl(name) <= keys.WORKER_LEASE_S
    await redis.delete(*names)


async def stored_status(api: ClientSession) -> Any:
    async def is_stored() -> bool:
        return len(await history(api)) == 2

    await wait_until(is_stored)
    return (await history(api))[1].get("status")


async def test_a_turn_for_which_only_a_dead_worker_waits_is_stopped(
    api: ClientSession, dying: tuple[Service, ClientSession], groq: MockGroq, redis: Redis
) -> None:
    groq.options.chunk_ms, groq.options.chunks = 50, 100
    service, other = dying
    first = await open_stream(api, CANCEL)
    await open_stream(other, CANCEL)
    service.signal(signal.SIGKILL)
    first.close()
    await expire_lease(redis, 2)
    assert await stored_status(api) == "incomplete"


async def test_a_turn_for_which_a_living_worker_waits_continues(
    serve: Serve, groq: MockGroq
) -> None:
    groq.options.chunk_ms, groq.options.chunks = 50, 20
    workers = [await serve(), await serve()]
    first = await open_stream(workers[0], CANCEL)
    second = await open_stream(workers[1], CANCEL)
    first.close()
    last = (await all_events(second))[-1]
    assert (last.name, last.data["finish_reason"]) == ("done", "stop")


async def test_a_request_that_wants_the_turn_to_continue_counts_after_the_death_of_its_worker(
    api: ClientSession, dying: tuple[Service, ClientSession], groq: MockGroq, redis: Redis
) -> None:
    groq.options.chunk_ms, groq.options.chunks = 50, 30
    service, other = dying
    first = await open_stream(api, CANCEL)
    await open_stream(other, STREAM)
    service.signal(signal.SIGKILL)
    first.close()
    await expire_lease(redis, 1)
    assert await stored_status(api) is None


async def test_a_worker_renews_its_lease_only_while_a_request_waits(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    groq.options.chunk_ms, groq.options.chunks = 20, 30
    response = await open_stream(api, CANCEL)
    await expire_lease(redis, 1)

    async def is_renewed() -> bool:
        return len(await redis.keys(f"{keys.WORKER_PREFIX}*")) == 1

    await wait_until(is_renewed)
    await all_events(response)
    # A renewal may be on its way at the end of the request.
    await asyncio.sleep(0.2)
    await expire_lease(redis, 1)
    await asyncio.sleep(0.2)
    assert await redis.keys(f"{keys.WORKER_PREFIX}*") == []
