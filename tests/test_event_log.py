"""The event log: the events of turns and the requests to stop them, in Redis."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from groqchat import sse
from groqchat.storage import event_log, keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import (
    Deletion,
    EventBatch,
    EventLog,
    EventSlice,
    TurnRequests,
    is_final,
)
from tests.support.turn_workers import RECORD, RECORD_VALUE, new_claim

TURN = "chat:turn:t"
STOPS = "chat:stops"


def event(number: int, name: str = "delta") -> bytes:
    return sse.encode_event(b'{"n":%d}' % number, name=name, number=number)


def events(*numbers: int) -> bytes:
    return b"".join(map(event, numbers))


def batch(
    *numbers: int, turn_id: str = "t", is_first: bool = False, ttl_s: int | None = None
) -> EventBatch:
    """Return a batch of events with these numbers."""
    return EventBatch(
        turn_id=turn_id,
        session_id="s",
        events=events(*numbers),
        last=numbers[-1] if numbers else 0,
        is_first=is_first,
        ttl_s=ttl_s,
    )


def final_batch(number: int, name: str) -> EventBatch:
    return replace(batch(number), events=event(number, name))


@pytest.fixture
async def log(any_redis: Redis) -> AsyncIterator[EventLog]:
    """An event log over each kind of server."""
    await any_redis.set(RECORD, RECORD_VALUE)
    async with CommandBatcher(any_redis, timeout_s=5) as batcher:
        yield EventLog(batcher)


async def test_an_entry_contains_several_events_and_has_the_number_of_the_last(
    log: EventLog, any_redis: Redis
) -> None:
    assert await log.append([batch(1, 2, is_first=True)]) == ["stored"]
    assert await log.append([batch(3)]) == ["stored"]

    assert await any_redis.xrange(TURN) == [
        (b"2-0", {b"frames": events(1, 2)}),
        (b"3-0", {b"frames": events(3)}),
    ]
    assert await any_redis.ttl(TURN) == -1


async def test_events_without_their_beginning_are_not_stored(
    log: EventLog, any_redis: Redis
) -> None:
    appended = await log.append(
        [batch(3, ttl_s=60), batch(1, turn_id="other", is_first=True, ttl_s=60), batch(9)]
    )
    assert appended == ["lost", "stored", "lost"]
    assert set(await any_redis.keys("*")) == {
        b"chat:turn:other",
        b"{chat:session:s}:keys",
        RECORD.encode(),
    }


async def test_a_batch_may_renew_the_ttls_of_its_turn(log: EventLog, any_redis: Redis) -> None:
    await any_redis.set("chat:claim:t", "request")
    await log.append([batch(1, is_first=True, ttl_s=keys.TURN_LEASE_S)])
    assert 0 < await any_redis.ttl(TURN) <= 15
    assert 0 < await any_redis.ttl("chat:claim:t") <= 15

    await log.append([batch(2)])
    assert 0 < await any_redis.ttl(TURN) <= 15
    # A batch without events renews the TTLs only.
    assert await log.append([batch(ttl_s=300)]) == ["stored"]
    assert 15 < await any_redis.ttl(TURN) <= 300
    assert 15 < await any_redis.ttl("chat:claim:t") <= 300
    assert await any_redis.xlen(TURN) == 2


async def test_results_belong_to_their_batches(log: EventLog) -> None:
    await log.append([batch(1, turn_id="known", is_first=True)])
    batches = [
        batch(turn_id="known", ttl_s=60),
        batch(2, turn_id="unknown", ttl_s=60),
        batch(2, turn_id="known", ttl_s=60),
        batch(1, turn_id="new", is_first=True, ttl_s=60),
        batch(5, turn_id="lost"),
        batch(3, turn_id="known"),
        batch(turn_id="known"),
    ]
    assert await log.append(batches) == [
        "stored",
        "lost",
        "stored",
        "stored",
        "lost",
        "stored",
        "stored",
    ]


async def test_events_are_read_after_a_number(log: EventLog) -> None:
    await log.append([batch(1, 2, is_first=True), batch(3, 4), batch(5)])

    found = [(await log.read("t", after)).events for after in range(7)]
    assert found == [
        events(1, 2, 3, 4, 5),
        events(2, 3, 4, 5),
        events(3, 4, 5),
        events(4, 5),
        events(5),
        b"",
        b"",
    ]


async def test_an_unknown_turn_does_not_exist(log: EventLog) -> None:
    assert await log.read("unknown", 0) == EventSlice(events=b"", exists=False, is_over=False)


@pytest.mark.parametrize("name", ["done", "error"])
async def test_a_turn_is_over_for_a_client_that_has_its_final_event(
    log: EventLog, name: str
) -> None:
    await log.append([batch(1, 2, is_first=True)])
    assert await log.read("t", 0) == EventSlice(events=events(1, 2), exists=True, is_over=False)
    assert await log.read("t", 2) == EventSlice(events=b"", exists=True, is_over=False)

    final = event(3, name)
    await log.append([final_batch(3, name)])
    assert await log.read("t", 2) == EventSlice(events=final, exists=True, is_over=True)
    assert await log.read("t", 3) == EventSlice(events=b"", exists=True, is_over=True)
    assert await log.read("t", 4) == EventSlice(events=b"", exists=True, is_over=True)


async def test_a_follower_that_is_far_behind_reads_again(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "READ_ENTRIES", 2)
    final = event(4, "done")
    await log.append([batch(1, is_first=True), batch(2), batch(3)])
    await log.append([final_batch(4, "done")])

    assert await log.read("t", 0) == EventSlice(events=events(1, 2), exists=True, is_over=False)
    assert await log.read("t", 2) == EventSlice(events=events(3) + final, exists=True, is_over=True)


async def test_a_request_is_read_by_every_worker(log: EventLog, any_redis: Redis) -> None:
    assert await log.requests("0-0") == TurnRequests(stops=[], deletions=[], last="0-0")
    await log.request_stop("a")
    await log.request_stop("b")

    found = await log.requests("0-0")
    assert found.stops == ["a", "b"]
    assert await log.requests("0-0") == found
    assert await log.requests(found.last) == replace(found, stops=[])
    await log.request_stop("c")
    assert (await log.requests(found.last)).stops == ["c"]
    assert 0 < await any_redis.ttl(STOPS) <= 60


async def test_recent_requests_contain_deletions_but_no_stops(
    log: EventLog, any_redis: Redis
) -> None:
    assert await log.recent_requests() == TurnRequests(stops=(), deletions=[], last="0-0")
    await log.request_stop("a")
    await any_redis.xadd(STOPS, {"session": "s", "last_turn": "t"})
    await log.request_stop("b")
    # From a later version of the service.
    await any_redis.xadd(STOPS, {"unknown": "c"})
    found = await log.recent_requests()
    deletion = Deletion(session_id="s", last_turn_id="t")
    assert found == TurnRequests(stops=(), deletions=[deletion], last=found.last)
    assert await log.requests("0-0") == replace(found, stops=["a", "b"])


async def test_each_stop_request_renews_the_ttl(log: EventLog, any_redis: Redis) -> None:
    await log.request_stop("a")
    await any_redis.expire(STOPS, 5)
    await log.request_stop("b")
    assert 5 < await any_redis.ttl(STOPS) <= 60
    assert (await log.requests("0-0")).stops == ["a", "b"]


async def test_the_number_of_requests_is_bounded(
    log: EventLog, any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_STOP_REQUESTS", 10)
    # Redis trims whole nodes, of a hundred entries each.
    await asyncio.gather(*(log.request_stop(f"t{number}") for number in range(300)))
    assert 10 <= await any_redis.xlen(STOPS) <= 120


async def test_many_requests_are_read_in_several_parts(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "READ_REQUESTS", 10)
    for number in range(15):
        await log.request_stop(f"t{number}")
    first = await log.requests("0-0")
    second = await log.requests(first.last)
    assert [*first.stops, *second.stops] == [f"t{number}" for number in range(15)]
    assert (len(first.stops), first.has_more, second.has_more) == (10, True, False)


async def test_deleted_events_do_not_exist(log: EventLog, any_redis: Redis) -> None:
    await any_redis.set("chat:claim:t", "request")
    await log.append([batch(1, is_first=True), batch(1, turn_id="other", is_first=True)])
    await log.delete(["t"])
    assert not (await log.read("t", 0)).exists
    assert (await log.read("other", 0)).exists
    assert not await any_redis.exists("chat:claim:t")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (event(1, "done"), True),
        (event(1, "error"), True),
        (event(1, "delta"), False),
        (event(1, "start"), False),
        (b"", False),
    ],
)
def test_done_and_error_are_final_events(text: bytes, *, expected: bool) -> None:
    assert is_final(text) is expected


async def test_only_the_attempt_that_owns_a_turn_stores_events(
    log: EventLog, any_redis: Redis
) -> None:
    def attempt(number: int, *numbers: int, **fields: Any) -> EventBatch:
        first = replace(batch(*numbers, is_first=True, ttl_s=4), claim=new_claim("t", number))
        return replace(first, **fields)

    newer = attempt(1, 10_000_001)
    assert await log.append([newer]) == ["stored"]
    names = (TURN, "chat:claim:t", "chat:attempts:t")
    before = [await any_redis.dump(name) for name in names]
    last = attempt(0, 2, is_first=False, is_last=True, ttl_s=300, is_repeatable=True)
    results = await log.append([attempt(0, 1), last, batch(1, turn_id="other", is_first=True)])
    assert results == ["superseded", "superseded", "stored"]
    assert [await any_redis.dump(name) for name in names] == before
    assert [await any_redis.ttl(name) for name in names] == [4, 4, keys.IDEMPOTENCY_TTL_S]


async def test_the_last_events_of_a_failed_attempt_that_are_sent_again_do_not_claim_the_turn(
    log: EventLog, any_redis: Redis
) -> None:
    claim = new_claim("t")
    first = replace(batch(1, is_first=True, ttl_s=4), claim=claim)
    assert await log.append([first]) == ["stored"]
    last = replace(
        final_batch(2, "error"), ttl_s=300, claim=claim, is_last=True, is_repeatable=True
    )
    assert await log.append([last]) == ["stored"]
    assert await any_redis.get("chat:claim:t") == b"released"
    assert await log.append([last]) == ["superseded"]
    assert await any_redis.get("chat:claim:t") == b"released"
    assert (await log.read("t", 0)).events == events(1) + event(2, "error")
