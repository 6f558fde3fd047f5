"""Plain requests whose client disconnects while they wait for a turn."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiohttp import ClientSession

from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.waiters import Waiter, Waiters
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.in_process import worker
from tests.support.streams import wait_until

KEY = {"Idempotency-Key": "0d0c2f2e-8c2b-4d0f-9d0a-51f2a6a5f0c1"}
PLAIN = {"message": "Hello", "session_id": "s"}


@dataclass
class Shared:
    """A turn of a key that one client waits for; Groq answers after `release` is set."""

    limiter: TurnLimiter
    release: asyncio.Event
    client: ClientSession
    url: str

    async def leave(self) -> None:
        """Let a second client, which asked for `cancel`, wait and then disconnect."""
        body = {**PLAIN, "on_disconnect": "cancel"}
        leaving = asyncio.ensure_future(self.client.post(self.url, json=body, headers=KEY))
        await self.slots(2)
        leaving.cancel()

    async def slots(self, count: int) -> None:
        """Wait until this number of slots is in use."""

        async def are_used() -> bool:
            return len(self.limiter) == count

        await wait_until(are_used)


@pytest.fixture
async def shared(groq: MockGroq, redis_url: str) -> AsyncIterator[Shared]:
    """A turn that runs, and the client that waits for its answer."""
    release = groq.hold()
    async with ClientSession() as client, worker(redis_url, groq) as (url, limiter):
        shared = Shared(limiter, release, client, f"{url}{BASE}/chat")
        staying = asyncio.ensure_future(client.post(shared.url, json=PLAIN, headers=KEY))

        async def is_asked() -> bool:
            return bool(groq.requests)

        # Otherwise, the second client may start the turn.
        await wait_until(is_asked)
        await shared.slots(1)
        yield shared
        release.set()
        assert (await (await staying).json())["finish_reason"] == "stop"


async def test_an_error_while_a_client_leaves_is_logged_and_ends_its_request(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_waiters: Waiters, _waiter: Waiter) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(Waiters, "leave", fail)
    await shared.leave()
    await shared.slots(1)
    assert caplog.messages == ["a client that disconnected could not leave its turn"]


async def test_the_end_of_the_turn_does_not_interrupt_a_client_that_leaves(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    ends = asyncio.Event()

    async def leave(_waiters: Waiters, _waiter: Waiter) -> bool:
        steps.append("begins")
        await ends.wait()
        steps.append("ends")
        return False

    async def has_begun() -> bool:
        return steps == ["begins"]

    monkeypatch.setattr(Waiters, "leave", leave)
    await shared.leave()
    await wait_until(has_begun)
    shared.release.set()
    # The other client has its answer, and the turn has ended.
    await shared.slots(1)
    ends.set()
    await shared.slots(0)
    assert steps == ["begins", "ends"]
