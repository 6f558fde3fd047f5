"""The memory of Groq's rate limits: closed for a time, and then opened gradually."""

import asyncio

import pytest

from groqchat.errors import RateLimited
from groqchat.services.groq import rate_limits
from groqchat.services.groq.rate_limits import (
    FIRST_INTERVAL_S,
    MAX_CLOSED_S,
    MAX_NAME_CHARS,
    MEMORY_S,
    RateLimits,
    rate_limit_body,
)

FAR_S = 1000.0


class Clock:
    """A clock that moves only by the waits of the limits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    def __call__(self) -> float:
        return self.now

    async def _sleep(self, delay_s: float) -> None:
        self.waits.append(delay_s)
        self.now += delay_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def limits(clock: Clock) -> RateLimits:
    return RateLimits(clock)


async def test_without_a_limit_requests_start_at_once(limits: RateLimits, clock: Clock) -> None:
    await limits.wait("a", max_wait_s=0)
    limits.succeed("a")
    assert clock.waits == []
    assert limits.by_model == {}


async def test_a_request_that_would_wait_too_long_fails_at_once(
    limits: RateLimits, clock: Clock
) -> None:
    limits.close("a", 3)
    clock.now += 1
    with pytest.raises(RateLimited) as failure:
        await limits.wait("a", max_wait_s=1.9)
    assert failure.value.retry_after_s == 2
    assert clock.waits == []


async def test_a_request_waits_for_the_end_of_a_short_limit(
    limits: RateLimits, clock: Clock
) -> None:
    limits.close("a", 3)
    await limits.wait("a", max_wait_s=3)
    assert clock.waits == [3]


async def test_a_limit_applies_to_one_model(limits: RateLimits, clock: Clock) -> None:
    limits.close("a", 3)
    await limits.wait("b", max_wait_s=0)
    assert clock.waits == []


async def test_after_a_limit_requests_start_one_by_one(limits: RateLimits, clock: Clock) -> None:
    limits.close("a", 1)
    clock.now += 1
    for _ in range(4):
        await limits.wait("a", max_wait_s=5)
    assert clock.waits == pytest.approx([FIRST_INTERVAL_S] * 3)


async def test_each_success_after_a_limit_doubles_the_speed(
    limits: RateLimits, clock: Clock
) -> None:
    limits.close("a", 1)
    clock.now += 1
    for _ in range(20):
        await limits.wait("a", max_wait_s=5)
        limits.succeed("a")
    assert clock.waits == pytest.approx([FIRST_INTERVAL_S / 2**n for n in range(5)])
    assert limits.by_model == {}


async def test_a_success_of_an_earlier_request_does_not_end_a_limit(
    limits: RateLimits, clock: Clock
) -> None:
    limits.close("a", 3)
    for _ in range(20):
        limits.succeed("a")
    with pytest.raises(RateLimited):
        await limits.wait("a", max_wait_s=1)


async def test_a_later_429_extends_a_limit_but_never_shortens_it(
    limits: RateLimits, clock: Clock
) -> None:
    limits.close("a", 3)
    limits.close("a", 1)
    await limits.wait("a", max_wait_s=FAR_S)
    assert clock.waits == [3]
    limits.close("a", 7)
    await limits.wait("a", max_wait_s=FAR_S)
    assert clock.waits == [3, 7]


async def test_a_request_waits_again_if_the_limit_is_exceeded_meanwhile(
    limits: RateLimits, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits.close("a", 2)

    async def exceed_once(delay_s: float) -> None:
        clock.waits.append(delay_s)
        clock.now += delay_s
        if len(clock.waits) == 1:
            limits.close("a", 2)

    monkeypatch.setattr(asyncio, "sleep", exceed_once)
    await limits.wait("a", max_wait_s=4)
    assert clock.waits == [2, 2]
    limits.close("a", 2)
    clock.waits.clear()
    with pytest.raises(RateLimited):
        await limits.wait("a", max_wait_s=1)


@pytest.mark.parametrize("retry_after_s", [None, 0.0])
async def test_a_429_without_a_delay_is_not_remembered(
    limits: RateLimits, retry_after_s: float | None
) -> None:
    limits.close("a", retry_after_s)
    assert limits.by_model == {}


async def test_a_very_long_limit_is_checked_every_minute(limits: RateLimits, clock: Clock) -> None:
    limits.close("a", 86_400)
    await limits.wait("a", max_wait_s=FAR_S)
    assert clock.waits == [MAX_CLOSED_S]


async def test_an_old_limit_is_forgotten(limits: RateLimits, clock: Clock) -> None:
    limits.close("a", 1)
    clock.now += 1 + MEMORY_S + 0.1
    for _ in range(10):
        await limits.wait("a", max_wait_s=0)
    assert clock.waits == []
    assert limits.by_model == {}


async def test_invented_models_do_not_fill_the_memory(
    limits: RateLimits, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "MAX_MODELS", 10)
    for number in range(100):
        limits.close(f"model-{number}", 1)
        assert len(limits.by_model) <= 10
    clock.now += 0.5
    limits.close("closed", 9)
    clock.now += 0.9
    for number in range(5):
        limits.close(f"other-{number}", 1)
    assert "closed" in limits.by_model


async def test_long_names_do_not_fill_the_memory(limits: RateLimits, clock: Clock) -> None:
    name = "x" * 1_000_000
    limits.close(name, 3)
    assert [len(model) for model in limits.by_model] == [MAX_NAME_CHARS]
    with pytest.raises(RateLimited):
        await limits.wait(name, max_wait_s=1)
    await limits.wait("x" * (MAX_NAME_CHARS - 1), max_wait_s=0)
    clock.now += 3
    for _ in range(10):
        limits.succeed(name)
    assert limits.by_model == {}


async def test_a_limit_is_logged_once(
    limits: RateLimits, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        limits.close("line\nbreak" + "x" * 100, 3)
    name = "line\\nbreak" + "x" * 54
    assert caplog.messages == [f"Groq limits the model '{name}' for 3.0 s"]


def test_the_body_of_a_remembered_429_has_the_format_of_groq() -> None:
    assert rate_limit_body(2.504) == (
        b'{"error":{"message":"Rate limit reached. Please try again in 2.5s.",'
        b'"type":"requests","code":"rate_limit_exceeded"}}'
    )
