"""Several requests with the same Idempotency-Key."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession
from redis.asyncio import Redis

from groqchat.storage import keys
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events, text_of
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.service import Service
from tests.support.streams import history, wait_until

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
BODY = {"message": "Hello", "session_id": "s"}


async def chat(api: ClientSession, **fields: Any) -> dict[str, Any]:
    response = await api.post(f"{BASE}/chat", json={**BODY, **fields}, headers=KEY)
    body: dict[str, Any] = await response.json()
    assert response.status == 200, body
    return body


async def test_fifty_concurrent_requests_with_the_same_key_run_one_turn(
    serve: Serve, groq: MockGroq
) -> None:
    groq.options.latency_ms = 300
    workers = [await serve(), await serve()]
    responses = await asyncio.gather(*(chat(workers[number % 2]) for number in range(50)))

    assert len(groq.requests) == 1
    assert responses == [responses[0]] * 50
    assert [message["role"] for message in await history(workers[0])] == ["user", "assistant"]
    assert await chat(workers[1]) == responses[0]
    assert len(groq.requests) == 1


async def test_requests_without_a_session_id_share_one_new_session(
    api: ClientSession, groq: MockGroq
) -> None:
    responses = await asyncio.gather(*(chat(api, session_id=None) for _ in range(5)))
    assert {body["session_id"] for body in responses} == {responses[0]["session_id"]}
    assert len(groq.requests) == 1


async def test_a_stream_and_a_plain_request_with_the_same_key_share_a_turn(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 20
    response = await api.post(f"{BASE}/chat", json={**BODY, "stream": True}, headers=KEY)
    plain = await chat(api)
    events = await all_events(response)
    again = await api.post(f"{BASE}/chat", json={**BODY, "stream": True}, headers=KEY)

    assert events[-1].data == plain
    assert text_of(events) == plain["message"]
    assert await all_events(again) == events
    assert len(groq.requests) == 1


async def test_a_key_with_a_different_message_is_rejected(api: ClientSession) -> None:
    await chat(api)
    other = {**BODY, "message": "Something else"}
    response = await api.post(f"{BASE}/chat", json=other, headers=KEY)
    await assert_error(response, 409, "idempotency_key_reused", param="Idempotency-Key")


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9"])
async def test_an_invalid_key_is_rejected(api: ClientSession, key: str) -> None:
    response = await api.post(f"{BASE}/chat", json=BODY, headers={"Idempotency-Key": key})
    await assert_error(response, 422, "invalid_field", param="Idempotency-Key")


async def test_waiting_requests_share_a_failure_and_a_later_request_runs_the_turn_again(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = "429"
    groq.options.latency_ms = 200

    async def fail() -> None:
        response = await api.post(f"{BASE}/chat", json=BODY, headers=KEY)
        await assert_error(response, 429, "rate_limited")

    await asyncio.gather(*(fail() for _ in range(5)))
    assert len(groq.requests) == 1
    groq.options.fail = None
    async with asyncio.timeout(20):
        while (response := await api.post(f"{BASE}/chat", json=BODY, headers=KEY)).status == 429:
            await asyncio.sleep(0.1)
    assert response.status == 200
    # The second attempt does not store the user message again or add it to the prompt twice.
    assert groq.prompts == [[("user", "Hello")]] * 2
    assert [message["role"] for message in await history(api)] == ["user", "assistant"]


async def test_the_answer_replaces_the_incomplete_answer_of_a_failed_attempt(
    api: ClientSession, groq: MockGroq
) -> None:
    await api.post(f"{BASE}/chat", json={"message": "Before", "session_id": "s"})
    groq.options.fail = "500"
    groq.options.fail_times = 1
    groq.options.fail_after_chunks = 4
    body = {**BODY, "stream": True}
    failed = await all_events(await api.post(f"{BASE}/chat", json=body, headers=KEY))
    assert failed[-1].name == "error"
    assert (await history(api))[-1]["status"] == "incomplete"
    async with asyncio.timeout(20):
        while True:
            response = await api.post(f"{BASE}/chat", json=BODY, headers=KEY)
            if response.status == 200:
                break
            await asyncio.sleep(0.1)
    answer = (await response.json())["message"]
    assert [message["content"] for message in await history(api)][2:] == ["Hello", answer]
    assert groq.prompts[-1] == groq.prompts[-2]


async def test_a_turn_that_could_not_start_does_not_block_its_key(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(max_concurrent_turns=1)
    groq.options.latency_ms = 300
    busy = asyncio.create_task(api.post(f"{BASE}/chat", json={"message": "Busy"}))
    async with asyncio.timeout(20):
        while not groq.requests:
            await asyncio.sleep(0.01)
    response = await api.post(f"{BASE}/chat", json=BODY, headers=KEY)
    await assert_error(response, 503, "overloaded")
    await busy
    assert (await asyncio.wait_for(chat(api), 5))["history_saved"] is True


async def test_the_retry_after_of_groq_is_returned(serve: Serve, groq: MockGroq) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = "429"
    groq.options.retry_after_s = 30
    response = await api.post(f"{BASE}/chat", json=BODY, headers=KEY)
    assert response.headers["Retry-After"] == "30"


async def test_the_next_request_runs_the_turn_of_a_worker_that_died(
    api: ClientSession, groq: MockGroq, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    groq.options.latency_ms = 60_000
    with Service(
        tmp_path, REDIS_URL=redis_url, GROQ_BASE_URL=groq.url, GROQ_API_KEY="gsk_test"
    ) as service:
        async with ClientSession(service.url) as dying:
            lost = asyncio.create_task(chat(dying))

            async def is_running() -> bool:
                return bool(groq.requests) and bool(await redis.keys(f"{keys.TURN_PREFIX}*"))

            await wait_until(is_running)
            service.signal(signal.SIGKILL)
            with pytest.raises(ClientError):
                await lost
    # Nobody renews these keys any more, and they expire.
    (claim,) = await redis.keys(f"{keys.CLAIM_PREFIX}*")
    (events,) = await redis.keys(f"{keys.TURN_PREFIX}*")
    await redis.delete(claim, events)
    groq.options.latency_ms = 0

    answer = await chat(api)
    assert len(groq.requests) == 2
    assert [message["id"] for message in await history(api)] == [
        answer["turn_id"],
        answer["message_id"],
    ]


async def test_without_redis_a_request_with_a_key_is_rejected(
    serve: Serve, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    api = await serve(redis_url=own_redis_server.url(0), redis_timeout_s=0.5)
    own_redis_server.kill()
    response = await api.post(f"{BASE}/chat", json=BODY, headers=KEY)
    await assert_error(response, 503, "history_unavailable")
    assert groq.requests == []
