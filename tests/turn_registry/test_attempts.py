"""Several attempts at a turn with an Idempotency-Key: only the newest has events and may write."""

import asyncio

import pytest
from fakeredis import FakeAsyncRedis

from groqchat.errors import TurnLost
from groqchat.services.turns.turn import Turn
from groqchat.storage import keys
from groqchat.storage.claims import Claim, claim_turn, parse_claim_reply
from tests.support.clock import Clock
from tests.support.streams import wait_until
from tests.support.turn_workers import Worker, finish, is_published, new_claim, publish

FIRST = 10_000_001


@pytest.fixture
async def late(fake_redis: FakeAsyncRedis) -> Worker:
    """The worker of the first attempt, whose lease expires."""
    return Worker(fake_redis)


async def claim(redis: FakeAsyncRedis, attempt: Claim) -> None:
    """Claim a turn for an attempt after the lease of the one before has expired."""
    await redis.delete(keys.turn_key(attempt.turn_id), keys.claim_key(attempt.turn_id))
    reply = await redis.execute_command(*claim_turn(attempt.turn_id, attempt.token))  # type: ignore[no-untyped-call] # redis-py has no types here
    assert parse_claim_reply(reply) == attempt.attempt


async def start_first(worker: Worker) -> Turn:
    """Start the first attempt at a turn and publish its first event."""
    turn = worker.start(claim=new_claim())
    await publish(worker)
    return turn


async def start_newer(worker: Worker, old: Turn, redis: FakeAsyncRedis) -> Turn:
    """Start a further attempt at a turn after the lease of the first one has expired."""
    newer = new_claim(old.id, attempt=1)
    await claim(redis, newer)
    return worker.start(claim=newer)


async def publish_second(worker: Worker, count: int) -> Turn:
    """Publish a second attempt at a turn, with a number of texts."""
    turn = worker.start(claim=new_claim(attempt=1))
    add_texts(turn, "new", count)
    finish(turn)
    await publish(worker)
    return turn


def add_texts(turn: Turn, text: str, count: int) -> None:
    for number in range(count):
        turn.add_text(f"{text}{number}")


async def test_the_events_of_another_attempt_have_other_numbers(
    worker: Worker, other: Worker
) -> None:
    turn = await publish_second(worker, 300)
    everything = b"".join(turn.events)
    numbers = [int(line[4:]) for line in everything.splitlines() if line.startswith(b"id: ")]
    assert numbers == list(range(FIRST, FIRST + 302))
    for each in (worker, other):
        assert await each.follow(turn.id) == everything
        assert await each.follow(turn.id, FIRST + 1) == b"".join(turn.events[2:])
        assert await each.follow(turn.id, FIRST + 301) is None


@pytest.mark.parametrize("count", [2, 40], ids=["a shorter attempt", "a longer attempt"])
async def test_a_follower_receives_no_events_of_another_attempt(
    worker: Worker, other: Worker, late: Worker, fake_redis: FakeAsyncRedis, count: int
) -> None:
    old = late.start(claim=new_claim())
    add_texts(old, "old", 20)
    await publish(late)
    events = await other.registry.follow(old.id)
    assert events is not None
    assert await anext(events) == b"".join(old.events)
    turn = await start_newer(worker, old, fake_redis)
    add_texts(turn, "new", count)
    finish(turn)
    await publish(worker)
    with pytest.raises(TurnLost):
        await asyncio.wait_for(anext(events), 5)
    assert await other.follow(turn.id) == b"".join(turn.events)


@pytest.mark.parametrize("after", [1, 6, 40])
async def test_the_number_of_an_earlier_attempt_cannot_be_resumed(
    worker: Worker, other: Worker, after: int
) -> None:
    turn = await publish_second(worker, 9)
    for each in (worker, other):
        with pytest.raises(TurnLost):
            await each.follow(turn.id, after)


async def test_an_attempt_that_lost_its_claim_stops_and_writes_nothing(
    worker: Worker, other: Worker, late: Worker, fake_redis: FakeAsyncRedis
) -> None:
    old = await start_first(late)
    turn = await start_newer(worker, old, fake_redis)
    finish(turn)
    await publish(worker)
    names = (keys.turn_key(turn.id), keys.claim_key(turn.id))
    assert [await fake_redis.ttl(name) for name in names] == [keys.IDEMPOTENCY_TTL_S] * 2
    # The worker of the first attempt goes on after its lease has expired.
    following = asyncio.create_task(late.follow(old.id))
    await asyncio.sleep(0)
    add_texts(old, "old", 30)
    await publish(late)
    assert old.stop_reason == "superseded"
    assert old.id not in late.registry._local
    old.end()
    with pytest.raises(TurnLost):
        await following
    assert await is_published(other, turn)
    assert [await fake_redis.ttl(name) for name in names] == [keys.IDEMPOTENCY_TTL_S] * 2
    assert turn.claim is not None
    assert await fake_redis.get(names[1]) == turn.claim.token.encode()


@pytest.mark.parametrize("is_over", [False, True])
async def test_events_that_redis_rejects_do_not_shorten_the_newer_attempt(
    worker: Worker, other: Worker, late: Worker, fake_redis: FakeAsyncRedis, *, is_over: bool
) -> None:
    old = await start_first(late)
    turn = await start_newer(worker, old, fake_redis)
    if is_over:
        finish(turn)
    await publish(worker)
    add_texts(old, "old", 3)
    await publish(late)
    assert await is_published(other, turn)
    assert old.stop_reason == "superseded"


async def test_a_claim_is_confirmed_after_a_long_pause_and_the_turn_continues(
    publishing: Worker, other: Worker, fake_redis: FakeAsyncRedis, clock: Clock
) -> None:
    attempt = new_claim()
    await claim(fake_redis, attempt)
    turn = publishing.start(claim=attempt)
    await wait_until(lambda: is_published(other, turn))
    # Nobody else has claimed the turn, whose keys have expired.
    await fake_redis.delete(keys.turn_key(turn.id), keys.claim_key(turn.id))
    await clock.advance(keys.TURN_LEASE_S + 1)
    add_texts(turn, "text", 3)
    finish(turn)
    await wait_until(lambda: is_published(other, turn))
    assert await fake_redis.get(keys.claim_key(turn.id)) == attempt.token.encode()
    assert turn.stop_reason is None


async def test_the_last_events_of_an_attempt_that_redis_rejects_do_not_claim_the_turn_again(
    worker: Worker, fake_redis: FakeAsyncRedis
) -> None:
    claim = new_claim()
    finish(worker.start(claim=claim))
    worker.batcher.rejected = claim.turn_id
    await publish(worker)
    assert not await fake_redis.exists(keys.claim_key(claim.turn_id))
