"""Turns that are stopped and followed from any worker."""

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
async def test_a_turn_is_stopped_wherever_it_runs(
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
    question, answer = await history(api)
    assert done["message"] == text_of(events) == answer["content"]
    assert answer["status"] == "incomplete"
    again = await other.post(url)
    assert (await again.json())["status"] == "stopped"
    # The next turn is told what was said so far.
    await api.post(f"{BASE}/chat", json={"message": "Go on", "session_id": "s"})
    assert groq.prompts[-1] == [
        ("user", "Hello"),
        ("assistant", answer["content"]),
        ("user", "Go on"),
    ]
    assert question["id"] == start.data["turn_id"]


async def test_a_turn_stopped_before_its_first_word_leaves_no_empty_answer(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.latency_ms = 20_000
    response, start = await start_stream(api)
    stopped = await api.post(f"{BASE}/chat/{start.data['turn_id']}/stop")
    assert (await stopped.json())["status"] == "stopped"
    (done,) = await all_events(response)
    assert (done.name, done.data["message"], done.data["status"]) == ("done", "", "incomplete")
    assert [message["role"] for message in await history(api)] == ["user"]


async def test_a_turn_that_is_over_is_not_stopped_any_more(api: ClientSession) -> None:
    response, start = await start_stream(api)
    await all_events(response)
    stopped = await api.post(f"{BASE}/chat/{start.data['turn_id']}/stop")
    assert (await stopped.json())["status"] == "finished"


@pytest.mark.parametrize("path", ["events", "stop"])
async def test_an_unknown_turn_is_not_found(api: ClientSession, path: str) -> None:
    url = f"{BASE}/chat/{'0' * 17}/{path}"
    method = api.get if path == "events" else api.post
    await assert_error(await method(url), 404, "turn_not_found")


@pytest.mark.parametrize("last", ["-1", "x", "1.5", ""])
async def test_a_place_that_is_no_number_is_refused(api: ClientSession, last: str) -> None:
    url = f"{BASE}/chat/{'0' * 17}/events"
    response = await api.get(url, headers={"Last-Event-ID": last})
    await assert_error(response, 422, "invalid_field", param="Last-Event-ID")


async def test_a_client_that_comes_back_again_and_again_misses_nothing(
    serve: Serve, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 5
    groq.options.chunks = 200
    workers = [await serve(), await serve()]
    response, start = await start_stream(workers[0])
    url = f"{BASE}/chat/{start.data['turn_id']}/events"
    seen = [start]
    pick = random.Random(4)  # noqa: S311 - no secret
    for _ in range(20):
        taken = pick.randrange(1, 15)
        async for event in read_events(response):
            seen.append(event)
            taken -= 1
            if taken == 0 or event.name == "done":
                break
        response.close()
        last = {"Last-Event-ID": str(seen[-1].id)}
        response = await pick.choice(workers).get(url, headers=last)
        assert response.status == 200
    seen += await all_events(response)

    assert [event.id for event in seen] == list(range(1, len(seen) + 1))
    assert text_of(seen) == seen[-1].data["message"] == (await history(workers[0]))[1]["content"]


async def test_the_events_of_a_turn_outlive_its_worker(
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


async def test_redis_sees_few_writes_of_a_stream(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    groq.options.chunks = 2000
    response, start = await start_stream(api)
    await all_events(response)

    async def published() -> bool:
        return await redis.ttl(keys.turn_key(start.data["turn_id"])) > keys.TURN_LEASE_S

    await wait_until(published)
    assert await redis.xlen(keys.turn_key(start.data["turn_id"])) < 200


async def test_the_turn_of_a_worker_that_is_gone_ends_with_an_error(
    api: ClientSession, redis: Redis
) -> None:
    turn_id = "0" * 17
    frame = b'id: 1\nevent: start\ndata: {"turn_id":"%b"}\n\n' % turn_id.encode()
    await redis.xadd(keys.turn_key(turn_id), {"frames": frame}, id="1-0")
    await redis.pexpire(keys.turn_key(turn_id), 300)

    events = await all_events(await api.get(f"{BASE}/chat/{turn_id}/events"))
    assert [event.name for event in events] == ["start", "error"]
    assert events[1].data["error"]["code"] == "turn_lost"
    assert events[1].id is None


@pytest.mark.parametrize("beyond", [0, 1, 1000])
async def test_a_client_that_has_everything_is_told_so(
    serve: Serve, api: ClientSession, redis: Redis, beyond: int
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
            headers={"Last-Event-ID": str((last.id or 0) + beyond)},
        )
        assert (again.status, await again.read()) == (204, b"")


async def test_a_place_ahead_of_a_running_turn_goes_on_with_what_comes(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.chunk_ms = 20
    _, start = await start_stream(api)
    url = f"{BASE}/chat/{start.data['turn_id']}/events"
    events = await all_events(await api.get(url, headers={"Last-Event-ID": "1000"}))
    assert events[-1].name == "done"


async def test_events_that_redis_has_lost_are_stored_again_from_the_first(
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


async def test_a_follower_outlives_a_pause_of_redis(
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


async def test_a_turn_that_is_over_elsewhere_is_not_asked_to_stop(
    serve: Serve, api: ClientSession, redis: Redis
) -> None:
    response, start = await start_stream(api)
    await all_events(response)
    stopped = await (await serve()).post(f"{BASE}/chat/{start.data['turn_id']}/stop")
    assert (await stopped.json())["status"] == "finished"
    assert await redis.xlen(keys.STOP_REQUESTS) == 0


async def test_events_take_no_head(api: ClientSession) -> None:
    response = await api.head(f"{BASE}/chat/{'0' * 17}/events")
    assert (response.status, response.headers["Allow"]) == (405, "GET")


def test_what_is_sent_at_once_is_bounded() -> None:
    turn = Turn("0" * 17, "s")
    for _ in range(300):
        turn.add("delta", {"text": "x" * 1000})
    sent, after = [], 0
    while after < len(turn.events):
        piece, after = turn.next_events(after)
        sent.append(piece)
    assert b"".join(sent) == b"".join(turn.events)
    assert max(map(len, sent)) <= MAX_WRITE_BYTES
    assert b"".join(split_writes(b"".join(turn.events))) == b"".join(turn.events)
    assert max(map(len, split_writes(b"".join(turn.events)))) <= MAX_WRITE_BYTES + 2000
