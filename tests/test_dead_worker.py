"""A worker that dies or freezes while it runs turns that clients of another worker follow."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.events import Event, read_events, text_of
from tests.support.service import Service
from tests.support.streams import STREAM_REQUEST, start_stream

# The lease, the time in which a living worker restores it, and some time for a busy machine.
NOTICED_WITHIN_S = 5.0
SLACK_S = 1.0
KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


class DyingWorker:
    """A worker in its own process, which the test can kill or freeze."""

    def __init__(self, service: Service, api: ClientSession) -> None:
        self.signal = service.signal
        self.api = api


@pytest.fixture
async def dying(redis_url: str, tmp_path: Path) -> AsyncIterator[DyingWorker]:
    """A worker whose model sends a word every 50 ms, eighty in all."""
    groq_url = "offline:?chunk_ms=50&chunks=80"
    service = Service(tmp_path, REDIS_URL=redis_url, GROQ_BASE_URL=groq_url)
    with service:
        async with ClientSession(service.url) as api:
            yield DyingWorker(service, api)


async def follow(api: ClientSession, turn_id: str) -> AsyncIterator[Event]:
    response = await api.get(f"{BASE}/chat/{turn_id}/events")
    assert response.status == 200, await response.text()
    return read_events(response)


async def test_the_death_of_a_worker_is_noticed_within_five_seconds(
    dying: DyingWorker, serve: Serve
) -> None:
    other = await serve()
    loop = asyncio.get_running_loop()
    _, start = await start_stream(dying.api)
    events = await follow(other, start.data["turn_id"])
    assert (await anext(events)).name == "start"
    dying.signal(signal.SIGKILL)
    died = loop.time()
    # A client that follows the turn already, and a client that resumes it now.
    resumed = await follow(other, start.data["turn_id"])
    last = [[event async for event in each][-1] for each in (events, resumed)]
    assert [(each.name, each.data["error"]["code"]) for each in last] == [
        ("error", "turn_lost")
    ] * 2
    assert loop.time() - died < NOTICED_WITHIN_S + SLACK_S


async def test_a_turn_with_a_key_runs_again_soon_after_the_death_of_its_worker(
    dying: DyingWorker, serve: Serve
) -> None:
    other = await serve()
    question = {"message": "Hello", "session_id": "s"}
    response = await dying.api.post(f"{BASE}/chat", json=STREAM_REQUEST, headers=KEY)
    start = await anext(read_events(response))
    await anext(await follow(other, start.data["turn_id"]))
    dying.signal(signal.SIGKILL)
    async with asyncio.timeout(NOTICED_WITHIN_S + SLACK_S):
        response = await other.post(f"{BASE}/chat", json=question, headers=KEY)
    answer = await response.json()
    assert (answer["turn_id"], answer["history_saved"]) == (start.data["turn_id"], True)


async def test_a_turn_of_a_worker_that_freezes_for_two_seconds_is_not_lost(
    dying: DyingWorker, serve: Serve
) -> None:
    other = await serve()
    _, start = await start_stream(dying.api)
    events = await follow(other, start.data["turn_id"])
    received = [await anext(events)]
    dying.signal(signal.SIGSTOP)
    await asyncio.sleep(2)
    dying.signal(signal.SIGCONT)
    received += [event async for event in events]
    assert (received[-1].name, received[-1].data["message"]) == ("done", text_of(received))
