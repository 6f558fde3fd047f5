"""Clients that share a turn by an Idempotency-Key: disconnects, repeated failures, new fields."""

import asyncio
import hashlib

import orjson
import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.storage import keys
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events, read_events, text_of
from tests.support.groq import MockGroq
from tests.support.streams import history, wait_until

KEY = {"Idempotency-Key": "c1f6c1f0-0d3c-4f6e-8b4e-0d4f1e1f2a66"}
PLAIN = {"message": "Hello", "session_id": "s"}
CANCEL = {**PLAIN, "on_disconnect": "cancel"}
ANSWER = 'This is the mock Groq server, not a model. You said: "Hello". Messages received: 1.'


async def stored_answer(api: ClientSession) -> tuple[str, str | None]:
    """Wait for the stored answer; return its content and its status."""

    async def is_stored() -> bool:
        return len(await history(api)) == 2

    await wait_until(is_stored)
    answer = (await history(api))[1]
    return answer["content"], answer.get("status")


@pytest.mark.parametrize("same_worker", [True, False])
async def test_a_disconnect_does_not_cancel_a_turn_that_another_client_follows(
    serve: Serve, groq: MockGroq, *, same_worker: bool
) -> None:
    groq.options.chunk_ms = 60
    first = await serve()
    second = first if same_worker else await serve()
    leaving = await first.post(f"{BASE}/chat", json={**CANCEL, "stream": True}, headers=KEY)
    await anext(read_events(leaving))
    staying = await second.post(f"{BASE}/chat", json={**PLAIN, "stream": True}, headers=KEY)
    await anext(read_events(staying))
    leaving.close()
    assert text_of(await all_events(staying)) == ANSWER
    assert await stored_answer(second) == (ANSWER, None)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_disconnect_of_the_only_client_cancels_the_turn(
    api: ClientSession, groq: MockGroq, redis: Redis, *, stream: bool
) -> None:
    groq.options.chunk_ms = 60 if stream else 0
    groq.options.latency_ms = 0 if stream else 20_000
    request = asyncio.ensure_future(
        api.post(f"{BASE}/chat", json={**CANCEL, "stream": stream}, headers=KEY)
    )
    if stream:
        response = await request
        events = read_events(response)
        while (await anext(events)).name != "delta":
            pass
        response.close()
        content, status = await stored_answer(api)
        assert ANSWER.startswith(content)
        assert (content != ANSWER, status) == (True, "incomplete")
    else:
        await wait_until(lambda: is_waiting(groq))
        request.cancel()

    async def may_run_again() -> bool:
        (name,) = [key async for key in redis.scan_iter(f"{keys.CLAIM_PREFIX}*")]
        return await redis.get(name) == keys.RELEASED.encode()

    await wait_until(may_run_again)


async def is_waiting(groq: MockGroq) -> bool:
    return len(groq.requests) == 1


async def test_both_clients_must_disconnect_to_cancel_their_turn(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 100
    responses = [
        await api.post(f"{BASE}/chat", json={**CANCEL, "stream": True}, headers=KEY)
        for _ in range(2)
    ]
    for response in responses:
        await anext(read_events(response))
        response.close()
    content, status = await stored_answer(api)
    assert (content != ANSWER, status) == (True, "incomplete")


async def test_a_field_with_its_default_value_does_not_change_the_request(
    api: ClientSession, groq: MockGroq
) -> None:
    first = await (await api.post(f"{BASE}/chat", json=PLAIN, headers=KEY)).json()
    explicit = {**PLAIN, "model": None, "temperature": None, "on_disconnect": "continue"}
    second = await (await api.post(f"{BASE}/chat", json=explicit, headers=KEY)).json()
    assert second == first
    assert len(groq.requests) == 1


async def test_a_new_optional_field_does_not_change_the_fingerprint_of_older_requests(
    api: ClientSession, redis: Redis
) -> None:
    await api.post(f"{BASE}/chat", json=PLAIN, headers=KEY)
    (name,) = [key async for key in redis.scan_iter(f"{keys.IDEMPOTENCY_PREFIX}*")]
    # Only the fields that the client has set.
    expected = hashlib.sha256(b'{"message":"Hello","session_id":"s"}').hexdigest()
    record = orjson.loads(await redis.get(name) or b"")
    assert record["fingerprint"] == expected


async def test_a_request_after_a_failure_runs_the_turn_again_at_once(
    serve: Serve, groq: MockGroq, redis: Redis
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = "500"
    failed = await api.post(f"{BASE}/chat", json={**PLAIN, "stream": True}, headers=KEY)
    await assert_error(failed, 502, "completion_unavailable")
    turn_id = failed.headers["X-Turn-ID"]

    async def is_published() -> bool:
        return await redis.get(keys.claim_key(turn_id)) == keys.RELEASED.encode()

    await wait_until(is_published)
    # The events of the failed attempt can still be read.
    failed_events = await all_events(await api.get(f"{BASE}/chat/{turn_id}/events"))
    assert [event.name for event in failed_events] == ["start", "error"]
    groq.options.fail = None
    response = await api.post(f"{BASE}/chat", json={**PLAIN, "stream": True}, headers=KEY)
    events = await all_events(response)
    assert (events[-1].name, text_of(events)) == ("done", ANSWER)
    assert events[-1].data["turn_id"] == turn_id
    # Another worker returns the events of the new attempt only.
    other = await serve()
    resumed = await all_events(await other.get(f"{BASE}/chat/{turn_id}/events"))
    assert resumed == events
