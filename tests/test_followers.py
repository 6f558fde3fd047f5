"""The limit on turns and their followers, and what followers receive at shutdown."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import ClientResponse, ClientSession

from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events, read_events
from tests.support.groq import MockGroq
from tests.support.in_process import worker
from tests.support.slow_clients import api_port, has_messages, never_reading_client
from tests.support.streams import STREAM_REQUEST, wait_until

KEY = {"Idempotency-Key": "6a0f8f62-7b1c-4b9a-9c52-6d9c3d3c2a11"}
PLAIN = {"message": "Hello", "session_id": "s"}
REQUESTS = 12
LIMIT = 3


@pytest.fixture
def release(groq: MockGroq) -> asyncio.Event:
    """Groq answers after this event is set."""
    return groq.hold()


async def send_together(
    send: Callable[[], Awaitable[ClientResponse]], release: asyncio.Event
) -> list[ClientResponse]:
    """Send REQUESTS requests; let Groq answer after the rejected ones have their response."""
    running = [asyncio.ensure_future(send()) for _ in range(REQUESTS)]

    async def others_are_rejected() -> bool:
        return sum(task.done() for task in running) >= REQUESTS - LIMIT

    await wait_until(others_are_rejected)
    release.set()
    responses = await asyncio.gather(*running)
    for response in responses:
        await response.read()
    return responses


def statuses(responses: list[ClientResponse]) -> Counter[int]:
    return Counter(response.status for response in responses)


@pytest.mark.parametrize("body", [PLAIN, STREAM_REQUEST])
async def test_requests_that_share_a_turn_by_their_key_count_against_the_limit(
    serve: Serve, release: asyncio.Event, body: dict[str, object]
) -> None:
    api = await serve(max_concurrent_turns=LIMIT)
    responses = await send_together(
        lambda: api.post(f"{BASE}/chat", json=body, headers=KEY), release
    )
    assert statuses(responses) == {200: LIMIT, 503: REQUESTS - LIMIT}
    rejected = next(response for response in responses if response.status == 503)
    await assert_error(rejected, 503, "overloaded")
    assert rejected.headers["Retry-After"] == "1"


async def test_a_streamed_turn_and_its_request_use_one_slot(
    serve: Serve, release: asyncio.Event
) -> None:
    api = await serve(max_concurrent_turns=LIMIT)
    responses = await send_together(
        lambda: api.post(f"{BASE}/chat", json={**STREAM_REQUEST, "session_id": None}), release
    )
    assert statuses(responses) == {200: LIMIT, 503: REQUESTS - LIMIT}


async def test_look_ups_of_unlisted_models_count_against_the_limit(
    serve: Serve, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await serve(max_concurrent_turns=LIMIT)
    await api.get(f"{BASE}/models")
    # The list is old enough to be refreshed, and Groq does not answer.
    monkeypatch.setattr("groqchat.services.groq.model_catalog.MAX_AGE_S", -1.0)
    release = groq.hold_models()
    body = {**PLAIN, "model": "some/unlisted-model"}
    responses = await send_together(lambda: api.post(f"{BASE}/chat", json=body), release)
    assert statuses(responses) == {422: LIMIT, 503: REQUESTS - LIMIT}


async def test_a_slow_reader_keeps_its_slot_after_the_end_of_the_turn(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await serve(max_concurrent_turns=1)
    with never_reading_client(api_port(await api.get("/healthz")), monkeypatch):
        await wait_until(lambda: has_messages(api, 2))
        await assert_error(await api.post(f"{BASE}/chat", json=PLAIN), 503, "overloaded")
    monkeypatch.undo()

    async def is_free() -> bool:
        return (await api.post(f"{BASE}/chat", json=PLAIN)).status == 200

    await wait_until(is_free)


async def test_a_turn_can_be_stopped_while_no_slot_is_free(
    serve: Serve, release: asyncio.Event
) -> None:
    api = await serve(max_concurrent_turns=1)
    response = await api.post(f"{BASE}/chat", json=STREAM_REQUEST)
    turn_id = response.headers["X-Turn-ID"]
    stopped = await api.post(f"{BASE}/chat/{turn_id}/stop")
    assert await stopped.json() == {"turn_id": turn_id, "status": "stopped"}
    release.set()


async def test_followers_of_another_worker_receive_an_error_event_at_shutdown(
    api: ClientSession, groq: MockGroq, redis_url: str
) -> None:
    groq.options.chunk_ms = 50
    groq.options.chunks = 200
    running = await api.post(f"{BASE}/chat", json=STREAM_REQUEST, headers=KEY)
    turn_id = (await anext(read_events(running))).data["turn_id"]
    async with (
        ClientSession() as client,
        worker(redis_url, groq, shutdown_grace_s=1.0) as (url, limiter),
    ):
        resumed = await client.get(f"{url}{BASE}/chat/{turn_id}/events")
        streamed = await client.post(f"{url}{BASE}/chat", json=STREAM_REQUEST, headers=KEY)
        plain = asyncio.ensure_future(client.post(f"{url}{BASE}/chat", json=PLAIN, headers=KEY))
        await anext(read_events(resumed))
        await anext(read_events(streamed))
        reading = [asyncio.ensure_future(all_events(each)) for each in (resumed, streamed)]

        async def plain_follows_too() -> bool:
            return len(limiter) == 3

        await wait_until(plain_follows_too)
    for last in [(await events)[-1] for events in reading]:
        assert (last.id, last.name) == (None, "error")
        assert (last.data["status"], last.data["error"]["code"]) == (503, "shutting_down")
    await assert_error(await plain, 503, "shutting_down")
    # The turn itself runs on, and its own follower is not affected.
    await api.post(f"{BASE}/chat/{turn_id}/stop")
    assert (await all_events(running))[-1].name == "done"
