"""The retry budget: an outage of Groq does not multiply the requests."""

import asyncio
from collections import Counter

import httpx
import pytest
from aiohttp import ClientSession
from groq import RateLimitError

from groqchat.retry import Deadlines, RetryBudget
from groqchat.services.groq import retries
from groqchat.services.groq.rate_limits import RateLimits
from groqchat.services.groq.retries import (
    MAX_RETRY_BURST,
    MIN_RETRIES_PER_S,
    RETRY_SHARE,
    GroqRetries,
)
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(clock: Clock) -> RetryBudget:
    return RetryBudget(share=0.25, min_per_s=2, capacity=10, clock=clock)


def take_all(budget: RetryBudget) -> int:
    taken = 0
    while budget.take():
        taken += 1
    return taken


def test_at_first_the_budget_contains_two_seconds_of_its_minimum(budget: RetryBudget) -> None:
    assert take_all(budget) == 4


def test_requests_add_their_share(budget: RetryBudget) -> None:
    take_all(budget)
    for _ in range(12):
        budget.add_request()
    assert take_all(budget) == 3


def test_time_adds_the_minimum(budget: RetryBudget, clock: Clock) -> None:
    take_all(budget)
    clock.now += 1.5
    assert budget.allows_retry
    assert take_all(budget) == 3
    assert not budget.allows_retry


def test_the_capacity_limits_a_burst(budget: RetryBudget, clock: Clock) -> None:
    for _ in range(1000):
        budget.add_request()
    clock.now += 1000
    assert take_all(budget) == 10


def test_a_retry_that_was_not_sent_costs_nothing(budget: RetryBudget) -> None:
    assert budget.take()
    budget.refund()
    assert take_all(budget) == 4


async def test_a_retry_that_a_rate_limit_refuses_costs_nothing() -> None:
    limits = RateLimits()
    limits.close("m", 30)
    groq_retries = GroqRetries(max_retries=2, rate_limits=limits)
    request = httpx.Request("POST", "http://groq.invalid")
    response = httpx.Response(429, headers={"Retry-After": "2"}, request=request)
    error = RateLimitError("limited", response=response, body=None)
    budget = take_all(GroqRetries(max_retries=2, rate_limits=limits).budget)
    with Deadlines(60).start() as deadline:
        for _ in range(3 * budget):
            assert not await groq_retries.wait(error, 0, deadline=deadline, model="m")
    assert take_all(groq_retries.budget) == budget


async def status(api: ClientSession) -> int:
    async with api.post(f"{BASE}/chat", json={"message": "Hello"}) as response:
        return response.status


async def test_an_outage_does_not_multiply_the_requests(
    serve: Serve, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "MIN_RETRIES_PER_S", 0.001)
    groq.options.fail, groq.options.retry_after_s = "503", 0
    api = await serve(groq_max_retries=2)
    statuses = await asyncio.gather(*(status(api) for _ in range(100)))

    assert Counter(statuses) == {503: 100}
    assert 100 < len(groq.requests) <= 100 * (1 + RETRY_SHARE)


async def test_a_service_with_little_traffic_retries_each_failure(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(groq_max_retries=2)
    groq.options.retry_after_s = 0
    for _ in range(3):
        groq.options.fail, groq.options.fail_times = "500", 2
        assert await status(api) == 200
    assert len(groq.requests) == 9


def test_the_budget_is_a_fraction_of_the_requests() -> None:
    assert (RETRY_SHARE, MIN_RETRIES_PER_S, MAX_RETRY_BURST) == (0.2, 5, 100)
