"""Further attempts at the turn of an Idempotency-Key: when they run, and what is stored."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.services.turns import registry
from groqchat.storage import keys
from groqchat.storage.messages import FIRST_CONTEXT, encode_member
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events, read_events
from tests.support.groq import MockGroq
from tests.support.store import new_message
from tests.support.streams import history, start_stream, wait_until

ANSWER = 'This is the mock Groq server, not a model. You said: "Hello". Messages received: 1.'
CANCEL: dict[str, Any] = {"on_disconnect": "cancel", "stream": True}


async def post(api: ClientSession, key: str = "key", **fields: Any) -> Any:
    body = {"message": "Hello", "session_id": "s", **fields}
    return await api.post(f"{BASE}/chat", json=body, headers={"Idempotency-Key": key})


async def lose_lease(redis: Redis) -> None:
    """Delete the keys that expire while a worker cannot reach Redis."""
    names = [await redis.keys(f"{prefix}*") for prefix in (keys.CLAIM_PREFIX, keys.TURN_PREFIX)]
    await redis.delete(*names[0], *names[1])


async def is_published(redis: Redis) -> bool:
    return bool(await redis.keys(f"{keys.TURN_PREFIX}*"))


async def test_a_turn_that_still_runs_on_this_worker_is_not_run_again(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    release = groq.hold()
    first = asyncio.create_task(post(api))
    await wait_until(lambda: is_published(redis))
    await lose_lease(redis)
    second = asyncio.create_task(post(api))

    async def is_claimed() -> bool:
        return bool(await redis.keys(f"{keys.CLAIM_PREFIX}*"))

    await wait_until(is_claimed)
    release.set()
    answers = [await (await each).json() for each in (first, second)]
    assert answers[0] == answers[1]
    assert len(groq.requests) == 1
    assert [message["role"] for message in await history(api)] == ["user", "assistant"]


@pytest.mark.parametrize("stream", [False, True])
async def test_only_the_answer_of_the_newest_attempt_is_stored(
    serve: Serve, groq: MockGroq, redis: Redis, *, stream: bool
) -> None:
    workers = [await serve(), await serve()]
    release = groq.hold()
    first = asyncio.create_task(post(workers[0], stream=stream))
    await wait_until(lambda: is_published(redis))
    # The first worker pauses longer than its lease. Meanwhile the second one claims the turn.
    (name,) = await redis.keys(f"{keys.CLAIM_PREFIX}*")
    await redis.delete(name)
    second = asyncio.create_task(post(workers[1]))

    async def both_run() -> bool:
        return len(groq.requests) == 2

    await wait_until(both_run)
    release.set()
    answer = await (await second).json()
    response = await first
    if stream:
        last = (await all_events(response))[-1]
        assert (last.id, last.name, last.data["error"]["code"]) == (None, "error", "turn_lost")
    else:
        # A plain request waits for the newest attempt.
        assert await response.json() == answer
    assert [message["id"] for message in await history(workers[0])] == [
        answer["turn_id"],
        answer["message_id"],
    ]
    assert await (await post(workers[0])).json() == answer


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_just_after_a_failure_runs_the_turn_again(
    serve: Serve, groq: MockGroq, *, stream: bool
) -> None:
    api = await serve(groq_max_retries=0)
    for number in range(5):
        groq.options.fail = "500"
        await assert_error(await post(api, f"key {number}"), 502, "completion_unavailable")
        groq.options.fail = None
        response = await post(api, f"key {number}", stream=stream)
        assert response.status == 200, await response.text()
        await response.read()
        assert len(groq.requests) == 2 * (number + 1)


async def test_another_worker_returns_the_error_until_it_is_written_and_then_runs_the_turn_again(
    serve: Serve, groq: MockGroq, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [await serve(groq_max_retries=0), await serve()]
    release = groq.hold()
    groq.options.fail = "500"
    first = asyncio.create_task(post(workers[0]))
    await wait_until(lambda: is_published(redis))
    # The worker of the turn writes its last events later than usual.
    monkeypatch.setattr(registry, "COALESCE_S", 3.0)
    release.set()
    await assert_error(await first, 502, "completion_unavailable")
    groq.options.fail = None
    await assert_error(await post(workers[1]), 502, "completion_unavailable")
    assert len(groq.requests) == 1
    assert (await (await post(workers[1])).json())["message"] == ANSWER


async def test_each_attempt_numbers_its_events_in_a_range_of_its_own(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = "500"
    groq.options.fail_after_chunks = 3
    ids = []
    for _ in range(3):
        events = await all_events(await post(api, stream=True))
        assert (events[0].name, events[-1].name) == ("start", "error")
        ids.append((events[0].id, events[-1].id))
    assert ids == [(1, 3), (10_000_001, 10_000_003), (20_000_001, 20_000_003)]
    turn_id = events[0].data["turn_id"]
    for after in ("2", "10000003"):
        headers = {"Last-Event-ID": after}
        response = await api.get(f"{BASE}/chat/{turn_id}/events", headers=headers)
        await assert_error(response, 502, "turn_lost")


async def test_a_request_just_after_a_cancelled_turn_runs_the_turn_again(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 50
    response = await post(api, **CANCEL)
    events = read_events(response)
    while (await anext(events)).name != "delta":
        pass
    response.close()

    async def is_stored() -> bool:
        return len(await history(api)) == 2

    await wait_until(is_stored)
    assert (await history(api))[1]["status"] == "incomplete"
    answer = await (await post(api)).json()
    assert (answer["message"], answer["finish_reason"]) == (ANSWER, "stop")
    assert [message["content"] for message in await history(api)] == ["Hello", ANSWER]


async def test_a_further_attempt_does_not_remove_the_stopped_answer_of_another_turn(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms, groq.options.chunks = 20, 400
    other, start = await start_stream(api)
    events = read_events(other)
    while (await anext(events)).name != "delta":
        pass
    # Groq is asked twice, because a message has no answer yet.
    groq.options.fail, groq.options.fail_times = "400", 2
    assert (await post(api)).status == 400
    async with api.post(f"{BASE}/chat/{start.data['turn_id']}/stop") as response:
        assert response.status == 200
    done = [event async for event in events][-1].data
    assert (done["status"], done["history_saved"]) == ("incomplete", True)
    groq.options.chunk_ms = 0
    answer = await (await post(api)).json()
    assert [message["id"] for message in await history(api)] == [
        start.data["turn_id"],
        answer["turn_id"],
        done["message_id"],
        answer["message_id"],
    ]


@pytest.mark.parametrize("later", [1, FIRST_CONTEXT])
async def test_a_further_attempt_has_the_context_of_the_first_one(
    serve: Serve, groq: MockGroq, redis: Redis, later: int
) -> None:
    api = await serve(groq_max_retries=0)
    assert (await post(api, "earlier", message="Earlier")).status == 200
    groq.options.fail = "500"
    await assert_error(await post(api), 502, "completion_unavailable")
    groq.options.fail = None
    messages = [new_message(f"later {number}") for number in range(later)]
    members = {encode_member(message): message.score for message in messages}
    await redis.zadd("chat:session:s", members)
    assert (await post(api)).status == 200
    assert [content for _, content in groq.prompts[-1]][::2] == ["Earlier", "Hello"]
    assert len(groq.prompts[-1]) == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prefixes", [(keys.CLAIM_PREFIX, keys.TURN_PREFIX), (keys.TURN_PREFIX,)])
async def test_a_stored_answer_is_repeated_if_redis_has_lost_the_events_of_its_turn(
    serve: Serve, groq: MockGroq, redis: Redis, prefixes: tuple[str, ...], *, stream: bool
) -> None:
    workers = [await serve(), await serve()]
    first = await (await post(workers[0])).json()

    async def is_released() -> bool:
        # The first worker keeps the turn until Redis has its events.
        (claim,) = await redis.keys(f"{keys.CLAIM_PREFIX}*")
        return await redis.ttl(claim) > keys.TURN_LEASE_S

    await wait_until(is_released)
    for prefix in prefixes:
        await redis.delete(*await redis.keys(f"{prefix}*"))
    response = await post(workers[1], stream=stream)
    if stream:
        start, delta, done = await all_events(response)
        assert (start.id, delta.data) == (10_000_001, {"text": first["message"]})
        assert done.data == {name: value for name, value in first.items() if name != "stream"}
    else:
        assert await response.json() == first
    assert len(groq.requests) == 1
    assert [message["role"] for message in await history(workers[1])] == ["user", "assistant"]
