"""The turn limiter: the slots of turns and of the requests that follow them."""

import asyncio

import pytest

from groqchat.errors import Overloaded
from groqchat.services.turns.limiter import TurnLimiter
from tests.support.clock import Clock
from tests.support.limiter import Drain, assert_free, assert_full, start_task


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's event loop."""
    return Clock(monkeypatch)


class Request:
    """A request that follows a turn until it is released."""

    def __init__(self, limiter: TurnLimiter) -> None:
        self.limiter = limiter
        self.sent = asyncio.Event()

    async def follow(self, *turns: asyncio.Event) -> str:
        """Follow a turn; start one that ends with each of these events."""
        with self.limiter.following():
            for ends in turns:
                self.limiter.check_turn()
                self.limiter.add(asyncio.create_task(self._run(ends)))
            await self.sent.wait()
        return "complete"

    async def _run(self, ends: asyncio.Event) -> None:
        await ends.wait()


async def test_a_turn_shares_the_slot_of_its_request_until_both_have_ended() -> None:
    limiter = TurnLimiter(1)
    for request_ends_first in (True, False):
        request, turn_ends = Request(limiter), asyncio.Event()
        following = await start_task(request.follow(turn_ends))
        assert_full(limiter, running=1)
        for event in (request.sent, turn_ends) if request_ends_first else (turn_ends, request.sent):
            assert_full(limiter, running=1)
            event.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert await following == "complete"
        assert_free(limiter, running=0)


async def test_a_second_turn_of_a_request_uses_a_slot_of_its_own() -> None:
    limiter = TurnLimiter(3)
    request, ends = Request(limiter), asyncio.Event()
    following = await start_task(request.follow(ends, ends))
    assert_free(limiter, running=2)
    request.sent.set()
    await following
    assert_free(limiter, running=2)
    ends.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert_free(limiter, running=0)


async def test_followers_are_rejected_beyond_the_limit() -> None:
    limiter = TurnLimiter(1)
    request = Request(limiter)
    following = await start_task(request.follow())
    with pytest.raises(Overloaded):
        await Request(limiter).follow()
    request.sent.set()
    await following
    assert_free(limiter, running=0)


async def test_a_follower_has_time_to_end_after_the_turns_are_stopped(clock: Clock) -> None:
    limiter = TurnLimiter(5)
    request = Request(limiter)
    following = await start_task(request.follow())
    drain = Drain(limiter, 20, lambda: None)
    await clock.advance(0)
    await clock.advance(18)
    assert (drain.stops, following.done()) == (1, False)
    request.sent.set()
    assert await following == "complete"
    await asyncio.wait_for(drain.task, 5)
