"""Deleting a session: the events of its turns and its stored answers are deleted with it."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.openai_paths import COMPLETIONS_PATH
from groqchat.services.turns.idempotency import IdempotencyKeys
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.streams import history, start_stream, wait_until

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
MODEL = "llama-3.3-70b-versatile"
QUESTION = {"message": "Hello", "session_id": "s"}


@pytest.fixture
async def workers(serve: Serve) -> list[ClientSession]:
    """Clients of two workers that share a database."""
    return [await serve(), await serve()]


async def delete_session(api: ClientSession, session_id: str = "s") -> None:
    response = await api.delete(f"{BASE}/history/{session_id}")
    assert response.status == 200, await response.text()


async def is_gone(workers: list[ClientSession], turn_id: str) -> bool:
    """Return whether no worker sends events of a turn."""
    responses = [await each.get(f"{BASE}/chat/{turn_id}/events") for each in workers]
    return [response.status for response in responses] == [404, 404]


async def names_in(redis: Redis) -> list[str]:
    """Return the names of all keys that contain or name messages."""
    names = [str(name)[2:-1] for name in await redis.keys("*")]
    return sorted(name for name in names if name != "{chat:session:s}:deleted")


async def ask(api: ClientSession, **headers: str) -> dict[str, Any]:
    response = await api.post(f"{BASE}/chat", json=QUESTION, headers={**KEY, **headers})
    assert response.status == 200, await response.text()
    answer: dict[str, Any] = await response.json()
    return answer


@pytest.mark.parametrize("where", ["same worker", "another worker"])
async def test_the_events_of_finished_turns_are_deleted_with_their_session(
    workers: list[ClientSession], redis: Redis, where: str
) -> None:
    deleting = workers[0] if where == "same worker" else workers[1]
    turns = []
    for session_id in ("s", "s", "other"):
        response, start = await start_stream(workers[0], session_id=session_id)
        await all_events(response)
        turns.append(start.data["turn_id"])

    async def are_published() -> bool:
        responses = [await workers[1].get(f"{BASE}/chat/{each}/events") for each in turns]
        return [response.status for response in responses] == [200] * 3

    await wait_until(are_published)
    await delete_session(deleting)
    for turn_id in turns[:2]:
        for worker in workers:
            await assert_error(
                await worker.get(f"{BASE}/chat/{turn_id}/events"), 404, "turn_not_found"
            )
            await assert_error(
                await worker.post(f"{BASE}/chat/{turn_id}/stop"), 404, "turn_not_found"
            )
    assert await names_in(redis) == [
        "chat:session:other",
        "chat:sessions",
        "chat:stops",
        f"chat:turn:{turns[2]}",
        "{chat:session:other}:keys",
    ]


@pytest.mark.parametrize("where", ["same worker", "another worker"])
async def test_the_events_of_a_running_turn_are_deleted_with_its_session(
    workers: list[ClientSession], redis: Redis, groq: MockGroq, where: str
) -> None:
    groq.options.chunk_ms, groq.options.chunks = 20, 40
    deleting = workers[0] if where == "same worker" else workers[1]
    response, start = await start_stream(workers[0])
    turn_id = start.data["turn_id"]

    async def is_published() -> bool:
        return await redis.xlen(f"chat:turn:{turn_id}") > 2

    await wait_until(is_published)
    await delete_session(deleting)
    await wait_until(lambda: is_gone(workers, turn_id))
    # The client that is connected receives the whole answer, which is not stored.
    done = (await all_events(response))[-1]
    assert (done.name, done.data["history_saved"]) == ("done", False)
    assert await is_gone(workers, turn_id)
    assert await history(workers[1]) == []
    assert await names_in(redis) == ["chat:stops"]


async def test_events_that_are_not_published_yet_are_deleted_too(
    workers: list[ClientSession], redis: Redis, groq: MockGroq
) -> None:
    groq.options.chunk_ms, groq.options.chunks = 5, 40
    response, start = await start_stream(workers[0])
    # Within the time in which the worker collects events for its first write.
    await delete_session(workers[1])
    await wait_until(lambda: is_gone(workers, start.data["turn_id"]))
    await all_events(response)
    assert await is_gone(workers, start.data["turn_id"])


async def test_a_turn_that_starts_after_the_deletion_is_not_affected(
    workers: list[ClientSession],
) -> None:
    await delete_session(workers[1])
    response, start = await start_stream(workers[0])
    events = await all_events(response)
    assert events[-1].data["history_saved"] is True
    again = await workers[1].get(f"{BASE}/chat/{start.data['turn_id']}/events")
    assert await all_events(again) == [start, *events]


async def test_a_key_of_a_deleted_session_is_unused_again(
    workers: list[ClientSession], groq: MockGroq, redis: Redis
) -> None:
    first = await ask(workers[0])
    assert await ask(workers[1]) == first
    await delete_session(workers[1])
    assert await names_in(redis) == ["chat:stops"]

    second = await ask(workers[0])
    assert second["turn_id"] != first["turn_id"]
    assert second["history_saved"] is True
    assert len(groq.requests) == 2
    assert [message["id"] for message in await history(workers[1])] == [
        second["turn_id"],
        second["message_id"],
    ]


async def test_a_request_that_waits_for_a_deleted_turn_does_not_start_it_again(
    workers: list[ClientSession], groq: MockGroq, redis: Redis
) -> None:
    release = groq.hold()
    running = asyncio.create_task(ask(workers[0]))

    async def is_running() -> bool:
        return bool(groq.requests) and bool(await redis.keys("chat:turn:*"))

    async def reads() -> int:
        # All tests of this process share the server.
        return int((await redis.info("commandstats"))["cmdstat_xrevrange"]["calls"])

    await wait_until(is_running)
    before = await reads()
    waiting = asyncio.create_task(workers[1].post(f"{BASE}/chat", json=QUESTION, headers=KEY))

    async def is_waiting() -> bool:
        return await reads() >= before + 3

    await wait_until(is_waiting)
    await delete_session(workers[1])
    await assert_error(await waiting, 409, "session_cleared")
    release.set()
    assert (await running)["history_saved"] is False
    assert len(groq.requests) == 1
    assert await history(workers[0]) == []


BODIES: dict[str, dict[str, Any]] = {
    f"{BASE}/chat": QUESTION,
    COMPLETIONS_PATH: {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]},
}
PATHS = pytest.mark.parametrize("path", BODIES)


@PATHS
async def test_a_key_whose_turn_begins_just_after_a_deletion_keeps_its_answer(
    workers: list[ClientSession],
    groq: MockGroq,
    redis: Any,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    join = IdempotencyKeys._join

    async def join_after_deletion(*arguments: Any) -> Any:
        monkeypatch.setattr(IdempotencyKeys, "_join", join)
        await delete_session(workers[1])
        return await join(*arguments)

    monkeypatch.setattr(IdempotencyKeys, "_join", join_after_deletion)
    headers = {**KEY, "X-Session-Id": "s"}
    answers = []
    for worker in (workers[0], workers[0], workers[1]):
        async with worker.post(path, json=BODIES[path], headers=headers) as response:
            assert response.status == 200
            answers.append(await response.json())

        async def is_over() -> bool:
            (claim,) = await redis.keys("chat:claim:*")
            return int(await redis.ttl(claim)) > 100

        await wait_until(is_over)
    assert answers == answers[:1] * 3
    assert len(groq.requests) == 1
    assert [each["role"] for each in await history(workers[0])] == ["user", "assistant"]
    (name,) = await redis.keys("chat:turn:*")
    assert await redis.ttl(name) > 100


@PATHS
async def test_a_turn_that_stores_its_message_just_after_a_deletion_is_deleted_too(
    workers: list[ClientSession], groq: MockGroq, redis: Redis, path: str
) -> None:
    release = groq.hold()
    headers = {**KEY, "X-Session-Id": "s"}
    running = asyncio.create_task(workers[0].post(path, json=BODIES[path], headers=headers))

    async def is_running() -> bool:
        return bool(groq.requests) and bool(await redis.keys("chat:turn:*"))

    await wait_until(is_running)
    messages = await redis.dump("chat:session:s")
    assert messages
    await delete_session(workers[1])
    # As if the turn had been claimed before the deletion, and had stored its message after it.
    await redis.restore("chat:session:s", 60_000, messages)
    release.set()
    async with await running as response:
        assert response.status == 200
    assert [each["role"] for each in await history(workers[0])] in ([], ["user"])
    async with workers[1].post(path, json=BODIES[path], headers=headers) as response:
        assert response.status == 200
    assert [each["role"] for each in await history(workers[0])] == ["user", "assistant"]
    assert len(groq.requests) == 2


async def test_the_answer_of_a_key_that_was_evicted_stays(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    release = groq.hold()
    running = asyncio.create_task(ask(api))

    async def is_running() -> bool:
        return bool(groq.requests)

    await wait_until(is_running)
    assert await redis.delete(*await redis.keys("chat:idempotency:*")) == 1
    release.set()
    assert (await running)["history_saved"] is True
    assert [each["role"] for each in await history(api)] == ["user", "assistant"]


async def test_the_names_of_the_keys_of_a_session_expire(
    workers: list[ClientSession], redis: Redis
) -> None:
    response, _ = await start_stream(workers[0])
    name = "{chat:session:s}:keys"

    async def is_linked() -> bool:
        return bool(await redis.zcard(name) == 1)

    await wait_until(is_linked)
    # For the time of the longest turn, and then for the retention of its events.
    assert 7190 < await redis.ttl(name) <= 7200
    # Names of keys that have expired are removed by the next turn.
    await redis.zadd(name, {"chat:turn:expired": 1})
    await all_events(response)
    response, _ = await start_stream(workers[0])
    await all_events(response)

    async def is_removed() -> bool:
        return await redis.zscore(name, "chat:turn:expired") is None

    await wait_until(is_removed)


async def test_a_deletion_in_a_full_redis_deletes_the_events(
    serve: Serve, own_redis_server: RedisServer
) -> None:
    url = own_redis_server.url(0)
    worker = await serve(redis_url=url)
    response, start = await start_stream(worker)
    await all_events(response)
    async with Redis.from_url(url, protocol=2) as redis:

        async def is_published() -> bool:
            return await redis.ttl(f"chat:turn:{start.data['turn_id']}") > 100

        await wait_until(is_published)
        await redis.config_set("maxmemory", "1")
        await delete_session(worker)
        assert await redis.keys("chat:turn:*") == []
