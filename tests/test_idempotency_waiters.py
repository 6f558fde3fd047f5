"""Which requests count as waiting for the turn of an Idempotency-Key."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession
from redis.asyncio import Redis

from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.keys import Command
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events, read_events
from tests.support.groq import MockGroq
from tests.support.in_process import worker
from tests.support.streams import history, wait_until

KEY = {"Idempotency-Key": "2f3f86f2-3c39-4c77-a7cf-0ad2f4a0d8ff"}
PLAIN = {"message": "Hello", "session_id": "s"}
STREAM = {**PLAIN, "stream": True}
CANCEL = {**STREAM, "on_disconnect": "cancel"}


async def open_stream(api: ClientSession, body: dict[str, Any]) -> ClientResponse:
    """Start or follow the stream of the key; return it after its first text."""
    response = await api.post(f"{BASE}/chat", json=body, headers=KEY)
    events = read_events(response)
    while (await anext(events)).name != "delta":
        pass
    return response


async def status_of_answer(api: ClientSession) -> str | None:
    """Wait for the stored answer; return its status."""

    async def is_stored() -> bool:
        return len(await history(api)) == 2

    await wait_until(is_stored)
    status: str | None = (await history(api))[1].get("status")
    return status


async def waiting(redis: Redis) -> int:
    """Return how many requests wait for the turn of the key."""
    names = await redis.keys(f"{keys.REQUESTS_PREFIX}*")
    return sum([int(await redis.scard(name)) for name in names])


async def test_a_request_that_failed_does_not_count(serve: Serve, groq: MockGroq) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = "500"
    failed = await api.post(f"{BASE}/chat", json=PLAIN, headers=KEY)
    await assert_error(failed, 502, "completion_unavailable")
    groq.options.fail, groq.options.chunk_ms = None, 100
    (await open_stream(api, CANCEL)).close()
    assert await status_of_answer(api) == "incomplete"


async def test_a_different_request_with_the_key_does_not_count(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    groq.options.chunk_ms = 100
    response = await open_stream(api, CANCEL)
    other = await api.post(f"{BASE}/chat", json={**PLAIN, "message": "Other"}, headers=KEY)
    await assert_error(other, 409, "idempotency_key_reused", param="Idempotency-Key")
    assert await waiting(redis) == 1
    response.close()
    assert await status_of_answer(api) == "incomplete"


async def test_a_rejected_request_does_not_count(
    serve: Serve, groq: MockGroq, redis: Redis
) -> None:
    workers = [await serve(), await serve(max_concurrent_turns=1)]
    groq.options.chunk_ms = 100
    response = await open_stream(workers[0], CANCEL)
    busy = await workers[1].post(f"{BASE}/chat", json={**STREAM, "session_id": "busy"})
    await assert_error(
        await workers[1].post(f"{BASE}/chat", json=PLAIN, headers=KEY), 503, "overloaded"
    )
    assert await waiting(redis) == 1
    response.close()
    assert await status_of_answer(workers[0]) == "incomplete"
    await all_events(busy)


async def test_a_command_that_is_sent_twice_counts_once(
    api: ClientSession, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = CommandBatcher.transact

    def send_twice(batcher: CommandBatcher, commands: Sequence[Command]) -> Any:
        # The connection broke after Redis had executed the commands.
        if any(command[0] in {"SREM", "DECR"} for command in commands):
            transact(batcher, commands)
        return transact(batcher, commands)

    monkeypatch.setattr(CommandBatcher, "transact", send_twice)
    groq.options.chunk_ms = 60
    leaving = await open_stream(api, CANCEL)
    staying = await open_stream(api, STREAM)
    leaving.close()
    last = (await all_events(staying))[-1]
    assert (last.name, last.data["finish_reason"]) == ("done", "stop")


async def test_a_client_that_wants_the_turn_to_continue_counts_after_its_disconnect(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 60
    staying = await open_stream(api, STREAM)
    leaving = await open_stream(api, CANCEL)
    staying.close()
    leaving.close()
    assert await status_of_answer(api) is None


async def test_the_count_is_deleted_with_the_end_of_the_turn(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    groq.options.chunk_ms = 20
    response = await open_stream(api, STREAM)
    assert await waiting(redis) == 1
    await all_events(response)

    async def is_deleted() -> bool:
        return not await redis.keys(f"{keys.REQUESTS_PREFIX}*")

    await wait_until(is_deleted)


async def test_a_request_that_receives_the_stored_answer_leaves_no_count(
    api: ClientSession, redis: Redis
) -> None:
    await (await open_stream(api, STREAM)).read()

    async def is_published() -> bool:
        (claim,) = await redis.keys(f"{keys.CLAIM_PREFIX}*")
        return int(await redis.ttl(claim)) > keys.TURN_LEASE_S

    async def is_deleted() -> bool:
        return not await redis.keys(f"{keys.REQUESTS_PREFIX}*")

    await wait_until(is_published)
    for body in (PLAIN, STREAM):
        response = await api.post(f"{BASE}/chat", json=body, headers=KEY)
        await response.read()
        await wait_until(is_deleted)


async def test_the_count_is_deleted_with_the_session(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    groq.options.chunk_ms = 20
    response = await open_stream(api, STREAM)
    assert (await api.delete(f"{BASE}/history/s")).status == 200
    await all_events(response)
    # If events were written at the moment of the deletion, the set of the session's other keys is
    # there again. It expires.
    names = ("chat:stops", keys.deletion_key("s"), keys.session_keys_key("s"))
    permitted = {name.encode() for name in names}

    async def is_deleted() -> bool:
        return set(await redis.keys("*")) <= permitted

    await wait_until(is_deleted)


@pytest.mark.parametrize("others_wait", [False, True])
async def test_a_plain_request_whose_client_left_uses_no_slot(
    groq: MockGroq, redis_url: str, *, others_wait: bool
) -> None:
    release = groq.hold()
    async with ClientSession() as client, worker(redis_url, groq) as (url, limiter):
        chat = f"{url}{BASE}/chat"
        # The turn shares the slot of the request that starts it.
        bodies = [PLAIN] if others_wait else []
        staying = [
            asyncio.ensure_future(client.post(chat, json=each, headers=KEY)) for each in bodies
        ]

        async def has_started() -> bool:
            return len(groq.requests) == others_wait

        await wait_until(has_started)
        body = {**PLAIN, "on_disconnect": "cancel"}
        leaving = asyncio.ensure_future(client.post(chat, json=body, headers=KEY))

        async def both_wait() -> bool:
            return len(limiter) == 1 + others_wait

        await wait_until(both_wait)
        leaving.cancel()

        async def has_left() -> bool:
            return len(limiter) == others_wait

        await wait_until(has_left)
        release.set()
        for each in staying:
            assert (await (await each).json())["finish_reason"] == "stop"
