"""Stopping a turn and resuming its events, on any worker."""

import asyncio
import random

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.services.turns.turn import Turn
from groqchat.sse import MAX_WRITE_BYTES, split_writes
from groqchat.storage import keys
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events, read_events, text_of
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.streams import history, start_stream, wait_until


@pytest.mark.parametrize("where", ["same worker", "another worker"])
async def test_any_worker_can_stop_a_turn(
    api: ClientSession, serve: Serve, groq: MockGroq, where: str
) -> None:
    groq.options.chunk_ms = 100
    other = api if where == "same worker" else await serve()
    response, start = await start_stream(api)
    delta = await anext(read_events(response))
    url = f"{BASE}/chat/{start.data['turn_id']}/stop"
    stopped = await other.post(url)

    assert await stopped.json() == {"turn_id": start.data["turn_id"], "status": "stopped"}
    events = [delta, *await all_events(response)]
    done = events[-1].data
    assert (done["finish_reason"], done["status"]) == ("stopped", "incomplete")
    user_message, answer = await history(api)
    assert done["message"] == text_of(events) == answer["content"]
    assert answer["status"] == "incomplete"
    stopped_again = await other.post(url)
    assert (await stopped_again.json())["status"] == "stopped"
    # The context of the next turn contains the incomplete answer.
    await api.post(f"{BASE}/chat", json={"message": "Go on", "session_id": "s"})
    assert groq.prompts[-1] == [
        ("user", "Hello"),
        ("assistant", answer["content"]),
        ("user", "Go on"),
    ]
    assert user_message["id"] == start.data["turn_id"]


async def test_no_answer_is_stored_for_a_turn_that_is_stopped_before_its_first_delta(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.latency_ms = 20_000
    response, start = await start_stream(api)
    stopped = await api.post(f"{BASE}/chat/{start.data['turn_id']}/stop")
    assert (await stopped.json())["status"] == "stopped"
    (done,) = await all_events(response)
    assert (done.name, done.data["message"], done.data["status"]) == ("done", "", "incomplete")
    assert [message["role"] for message in await history(api)] == ["user"]


async def test_stopping_a_finished_turn_returns_the_status_finished(api: ClientSession) -> None:
    response, start = await start_stream(api)
    await all_events(response)
    stopped = await api.post(f"{BASE}/chat/{start.data['turn_id']}/stop")
    assert (await stopped.json())["status"] == "finished"


@pytest.mark.parametrize("path", ["events", "stop"])
async def test_an_unknown_turn_is_not_found(api: ClientSession, path: str) -> None:
    url = f"{BASE}/chat/{'0' * 17}/{path}"
    method = api.get if path == "events" else api.post
    await assert_error(await method(url), 404, "turn_not_found")


@pytest.mark.parametrize("last_event_id", ["-1", "x", "1.5", ""])
async def test_an_invalid_last_event_id_is_rejected(api: ClientSession, last_event_id: str) -> None:
    url = f"{BASE}/chat/{'0' * 17}/events"
    response = await api.get(url, headers={"Last-Event-ID": last_event_id})
    await assert_error(response, 422, "invalid_field", param="Last-Event-ID")


@pytest.mark.parametrize("coalesce_ms", [0, 200])
async def test_a_client_that_reconnects_many_times_receives_every_event_once(
    serve: Serve, groq: MockGroq, coalesce_ms: int
) -> None:
    groq.options.chunk_ms = 5
    groq.options.chunks = 600 if coalesce_ms else 200
    workers = [await serve(stream_coalesce_ms=coalesce_ms) for _ in range(2)]
    response, start = await start_stream(workers[0])
    url = f"{BASE}/chat/{start.data['turn_id']}/events"
    received = [start]
    rng = random.Random(4)  # noqa: S311 - not used for security
    for _ in range(20):
        remaining = rng.randrange(1, 7 if coalesce_ms else 15)
        async for event in read_events(response):
            received.append(event)
            remaining -= 1
            if remaining == 0 or event.name == "done":
                break
        response.close()
        last = {"Last-Event-ID": str(received[-1].id)}
        response = await rng.choice(workers).get(url, headers=last)
        assert response.status == 200
    received += await all_events(response)

    assert [event.id for event in received] == list(range(1, len(received) + 1))
    assert (
        text_of(received)
        == received[-1].data["message"]
        == (await history(workers[0]))[1]["content"]
    )


async def test_another_worker_can_return_the_events_of_a_finished_turn(
    serve: Serve, api: ClientSession, redis: Redis
) -> None:
    response, start = await start_stream(api)
    events = [start, *await all_events(response)]
    key = keys.turn_key(start.data["turn_id"])

    async def published() -> bool:
        return 30 < await redis.ttl(key) <= keys.TURN_RETENTION_S

    await wait_until(published)
    other = await serve()
    again = await other.get(f"{BASE}/chat/{start.data['turn_id']}/events")
    assert await all_events(again) == events


async def test_a_long_stream_is_stored_with_few_writes(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    groq.options.chunks = 2000
    response, start = await start_stream(api)
    await all_events(response)

    async def published() -> bool:
        return await redis.ttl(keys.turn_key(start.data["turn_id"])) > keys.TURN_LEASE_S

    await wait_until(published)
    assert await redis.xlen(keys.turn_key(start.data["turn_id"])) < 200


async def test_the_events_of_a_turn_whose_worker_died_end_with_an_error(
    api: ClientSession, redis: Redis
) -> None:
    turn_id = "0" * 17
    event = b'id: 1\nevent: start\ndata: {"turn_id":"%b"}\n\n' % turn_id.encode()
    await redis.xadd(keys.turn_key(turn_id), {"frames": event}, id="1-0")
    await redis.pexpire(keys.turn_key(turn_id), 300)

    events = await all_events(await api.get(f"{BASE}/chat/{turn_id}/events"))
    assert [event.name for event in events] == ["start", "error"]
    assert events[1].data["error"]["code"] == "turn_lost"
    assert events[1].id is None


@pytest.mark.parametrize("offset", [0, 1, 1000, 2_568_040_669])
async def test_a_client_with_all_events_of_a_finished_turn_receives_204(
    serve: Serve, api: ClientSession, redis: Redis, offset: int
) -> None:
    response, start = await start_stream(api)
    last = (await all_events(response))[-1]
    key = keys.turn_key(start.data["turn_id"])

    async def published() -> bool:
        return await redis.ttl(key) > keys.TURN_LEASE_S

    await wait_until(published)
    for worker in (api, await serve()):
        again = await worker.get(
            f"{BASE}/chat/{start.data['turn_id']}/events",
            headers={"Last-Event-ID": str((last.id or 0) + offset)},
        )
        assert (again.status, await again.read()) == (204, b"")


async def test_with_a_last_event_id_that_a_running_turn_does_not_reach_the_stream_has_no_events(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 20
    _, start = await start_stream(api)
    url = f"{BASE}/chat/{start.data['turn_id']}/events"
    assert await all_events(await api.get(url, headers={"Last-Event-ID": "1000"})) == []
    finished = await api.get(url, headers={"Last-Event-ID": "1000"})
    assert finished.status == 204


async def test_if_redis_loses_the_events_of_a_running_turn_all_are_stored_again(
    serve: Serve, api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    groq.options.chunk_ms = 30
    response, start = await start_stream(api)
    key = keys.turn_key(start.data["turn_id"])

    async def stored() -> bool:
        return await redis.xlen(key) > 3

    await wait_until(stored)
    await redis.flushdb()
    events = [start, *await all_events(response)]
    assert await redis.ttl(key) > 0

    async def published() -> bool:
        return await redis.ttl(key) > keys.TURN_LEASE_S

    await wait_until(published)
    again = await (await serve()).get(f"{BASE}/chat/{start.data['turn_id']}/events")
    assert await all_events(again) == events


async def test_a_follower_stays_connected_during_an_outage_of_redis(
    serve: Serve, groq: MockGroq, own_redis_server: RedisServer
) -> None:
    groq.options.chunk_ms = 100
    url = own_redis_server.url(0)
    workers = [await serve(redis_url=url, redis_timeout_s=0.3) for _ in range(2)]
    _, start = await start_stream(workers[0])
    follower = await workers[1].get(f"{BASE}/chat/{start.data['turn_id']}/events")
    await anext(read_events(follower))
    own_redis_server.freeze()
    await asyncio.sleep(0.8)
    own_redis_server.thaw()
    events = await all_events(follower)
    assert events[-1].name == "done"
    assert text_of(events) in events[-1].data["message"]


async def test_stopping_a_finished_turn_of_another_worker_sends_no_stop_request(
    serve: Serve, api: ClientSession, redis: Redis
) -> None:
    response, start = await start_stream(api)
    await all_events(response)
    stopped = await (await serve()).post(f"{BASE}/chat/{start.data['turn_id']}/stop")
    assert (await stopped.json())["status"] == "finished"
    assert await redis.xlen(keys.STOP_REQUESTS) == 0


async def test_the_events_endpoint_rejects_head_requests(api: ClientSession) -> None:
    response = await api.head(f"{BASE}/chat/{'0' * 17}/events")
    assert (response.status, response.headers["Allow"]) == (405, "GET")


def test_the_size_of_one_write_is_limited() -> None:
    turn = Turn("0" * 17, "s")
    for _ in range(300):
        turn.add("delta", {"text": "x" * 1000})
    writes, after = [], 0
    while after < len(turn.events):
        data, after = turn.next_events(after)
        writes.append(data)
    assert b"".join(writes) == b"".join(turn.events)
    assert max(map(len, writes)) <= MAX_WRITE_BYTES
    assert b"".join(split_writes(b"".join(turn.events))) == b"".join(turn.events)
    assert max(map(len, split_writes(b"".join(turn.events)))) <= MAX_WRITE_BYTES + 2000


async def test_other_workers_receive_events_even_if_stop_requests_cannot_be_read(
    serve: Serve, api: ClientSession, redis: Redis
) -> None:
    other = await serve()
    await redis.set(keys.STOP_REQUESTS, "not a stream")
    response, start = await start_stream(api)
    await all_events(response)

    async def is_written() -> bool:
        return bool(await redis.exists(keys.turn_key(start.data["turn_id"])))

    await wait_until(is_written)
    followed = await other.get(f"{BASE}/chat/{start.data['turn_id']}/events")
    assert followed.status == 200, await followed.text()
    assert [event.name for event in await all_events(followed)][-1] == "done"
