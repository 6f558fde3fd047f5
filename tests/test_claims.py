"""Claims: which attempt owns a turn, and what the commands of the other attempts do."""

import pytest
from redis.asyncio import Redis

from groqchat.errors import HistoryFailed, TurnLost
from groqchat.storage import claims, keys
from groqchat.storage.claims import claim_turn, parse_claim_reply
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.keys import Command
from tests.support.turn_workers import RECORD, RECORD_VALUE, new_claim

CLAIM, ATTEMPTS, TURN = "chat:claim:t", "chat:attempts:t", "chat:turn:t"
FIRST, SECOND = new_claim("t"), new_claim("t", 1)
WRITE: Command = ("SET", "key", "value")


@pytest.fixture
async def batcher(any_redis: Redis) -> CommandBatcher:
    """A command batcher over each kind of server, which contains the record of the key."""
    await any_redis.set(RECORD, RECORD_VALUE)
    return CommandBatcher(any_redis, timeout_s=5)


async def claim(batcher: CommandBatcher, token: str) -> int | None:
    (reply,) = await batcher.transact([claim_turn("t", token)])
    return parse_claim_reply(reply)


async def fenced(batcher: CommandBatcher, command: Command) -> list[object] | None:
    (reply,) = await batcher.transact([command])
    found = claims.parse_fence_reply(reply)
    return None if found is None else list(found.replies)


async def test_one_request_claims_a_turn(batcher: CommandBatcher, any_redis: Redis) -> None:
    assert [await claim(batcher, token) for token in ("one", "two", "one")] == [0, None, 0]
    assert await any_redis.get(CLAIM) == b"one"
    assert [await any_redis.ttl(name) for name in (CLAIM, ATTEMPTS)] == [4, 3600]


async def test_a_further_attempt_begins_without_the_events_of_an_earlier_one(
    batcher: CommandBatcher, any_redis: Redis
) -> None:
    await claim(batcher, "one")
    await any_redis.xadd(TURN, {"frames": "earlier"})
    assert await claim(batcher, "two") is None
    assert await any_redis.exists(TURN)
    await any_redis.delete(CLAIM)
    assert await claim(batcher, "two") == 1
    assert not await any_redis.exists(TURN)


@pytest.mark.parametrize(("ttl_s", "attempt"), [(4, None), (3600, 1)])
async def test_a_turn_that_is_over_and_whose_events_redis_has_lost_is_claimed_again(
    batcher: CommandBatcher, any_redis: Redis, ttl_s: int, attempt: int | None
) -> None:
    await claim(batcher, "one")
    await any_redis.expire(CLAIM, ttl_s)
    assert await claim(batcher, "two") == attempt


async def test_a_lost_number_of_attempts_does_not_prevent_a_claim(
    batcher: CommandBatcher, any_redis: Redis
) -> None:
    await claim(batcher, "one")
    await any_redis.delete(ATTEMPTS)
    assert [await claim(batcher, token) for token in ("two", "one")] == [None, 0]


async def test_the_owner_of_a_turn_executes_commands(
    batcher: CommandBatcher, any_redis: Redis
) -> None:
    await claim(batcher, FIRST.token)
    commands: list[Command] = [WRITE, ("GET", "none"), ("ZADD", "set", "1.5", b"\xff\r\n")]
    assert await fenced(batcher, FIRST.fence(commands)) == [b"OK", None, 1]
    assert await any_redis.zrange("set", 0, -1) == [b"\xff\r\n"]
    assert await any_redis.ttl(CLAIM) == 4


@pytest.mark.parametrize("lease_s", [4, 0])
async def test_an_attempt_that_has_released_its_claim_executes_nothing(
    batcher: CommandBatcher, any_redis: Redis, lease_s: int
) -> None:
    await claim(batcher, FIRST.token)
    await batcher.transact(keys.end_repeatable_turn("t", 300))
    assert await fenced(batcher, FIRST.fence([WRITE], lease_s=lease_s)) is None
    assert await any_redis.get(CLAIM) == b"released"
    assert await claim(batcher, SECOND.token) == 1
    assert await any_redis.get(CLAIM) == SECOND.token.encode()


async def test_another_attempt_executes_nothing(batcher: CommandBatcher, any_redis: Redis) -> None:
    await claim(batcher, SECOND.token)
    assert await fenced(batcher, FIRST.fence([WRITE])) is None
    with pytest.raises(TurnLost):
        FIRST.check_reply([0])
    assert not await any_redis.exists("key")
    assert await any_redis.get(CLAIM) == SECOND.token.encode()


@pytest.mark.parametrize("lease_s", [4, 0])
async def test_an_attempt_goes_on_if_nobody_owns_the_turn(
    batcher: CommandBatcher, any_redis: Redis, lease_s: int
) -> None:
    assert await fenced(batcher, FIRST.fence([WRITE], lease_s=lease_s)) == [b"OK"]
    assert await any_redis.get(CLAIM) == (FIRST.token.encode() if lease_s else None)
    assert await any_redis.get(ATTEMPTS) == (b"1" if lease_s else None)


@pytest.mark.parametrize("lease_s", [4, 0])
async def test_an_attempt_does_not_go_on_after_a_newer_one_that_has_ended(
    batcher: CommandBatcher, any_redis: Redis, lease_s: int
) -> None:
    await fenced(batcher, SECOND.fence([]))
    await any_redis.delete(CLAIM)
    assert await fenced(batcher, FIRST.fence([WRITE], lease_s=lease_s)) is None
    assert not await any_redis.exists("key", CLAIM)


async def test_an_attempt_does_not_claim_the_turn_of_a_deleted_session(
    batcher: CommandBatcher, any_redis: Redis
) -> None:
    await any_redis.delete(RECORD)
    assert await fenced(batcher, FIRST.fence([WRITE])) == [b"OK"]
    assert await any_redis.keys("*") == [b"key"]


async def test_after_a_command_that_fails_no_further_one_is_executed(
    batcher: CommandBatcher, any_redis: Redis
) -> None:
    with pytest.raises(HistoryFailed):
        await fenced(batcher, FIRST.fence([("INCR", "n"), ("GET", ATTEMPTS, "more"), WRITE]))
    assert not await any_redis.exists("key", CLAIM)
    await claim(batcher, FIRST.token)
    with pytest.raises(HistoryFailed):
        await fenced(batcher, FIRST.fence([("GET", "too", "many"), WRITE]))
    assert await any_redis.get(CLAIM) == FIRST.token.encode()


@pytest.mark.parametrize(("released", "holder"), [(FIRST, None), (SECOND, FIRST.token.encode())])
async def test_an_attempt_that_has_not_started_is_forgotten_unless_another_one_owns_the_turn(
    batcher: CommandBatcher, any_redis: Redis, released: object, holder: bytes | None
) -> None:
    await claim(batcher, FIRST.token)
    assert isinstance(released, type(FIRST))
    await released.release(batcher.transact)
    assert await any_redis.get(CLAIM) == holder
    assert await any_redis.get(ATTEMPTS) == (b"1" if holder else None)
