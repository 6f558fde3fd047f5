"""Turns that are stopped and followed from anywhere."""

import random

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.storage import keys
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events, read_events, text_of
from tests.support.groq import FakeGroq
from tests.support.streams import begin, history, until


@pytest.mark.parametrize("where", ["same worker", "another worker"])
async def test_a_turn_is_stopped_wherever_it_runs(
    api: ClientSession, serve: Serve, groq: FakeGroq, where: str
) -> None:
    groq.options.chunk_ms = 100
    other = api if where == "same worker" else await serve()
    response, start = await begin(api)
    delta = await anext(read_events(response))
    url = f"{BASE}/chat/{start.data['turn_id']}/stop"
    if where == "another worker":
        await until(lambda: _is_known(other, url))
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
    assert groq.conversations[-1] == [
        ("user", "Hello"),
        ("assistant", answer["content"]),
        ("user", "Go on"),
    ]
    assert question["id"] == start.data["turn_id"]


async def _is_known(api: ClientSession, url: str) -> bool:
    response = await api.get(url.replace("/stop", "/events"))
    response.close()
    return response.status == 200


async def test_a_turn_stopped_before_its_first_word_leaves_no_empty_answer(
    api: ClientSession, groq: FakeGroq
) -> None:
    groq.options.latency_ms = 20_000
    response, start = await begin(api)
    stopped = await api.post(f"{BASE}/chat/{start.data['turn_id']}/stop")
    assert (await stopped.json())["status"] == "stopped"
    (done,) = await all_events(response)
    assert (done.name, done.data["message"], done.data["status"]) == ("done", "", "incomplete")
    assert [message["role"] for message in await history(api)] == ["user"]


async def test_a_turn_that_is_over_is_not_stopped_any_more(api: ClientSession) -> None:
    response, start = await begin(api)
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
    serve: Serve, groq: FakeGroq
) -> None:
    groq.options.chunk_ms = 5
    groq.options.chunks = 200
    workers = [await serve(), await serve()]
    response, start = await begin(workers[0])
    url = f"{BASE}/chat/{start.data['turn_id']}/events"
    await until(lambda: _is_known(workers[1], f"{BASE}/chat/{start.data['turn_id']}/stop"))
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
    response, start = await begin(api)
    events = [start, *await all_events(response)]
    key = keys.turn_key(start.data["turn_id"])

    async def published() -> bool:
        return 30 < await redis.ttl(key) <= keys.TURN_KEPT_S

    await until(published)
    other = await serve()
    again = await other.get(f"{BASE}/chat/{start.data['turn_id']}/events")
    assert await all_events(again) == events


async def test_redis_sees_few_writes_of_a_stream(
    api: ClientSession, groq: FakeGroq, redis: Redis
) -> None:
    groq.options.chunks = 2000
    response, start = await begin(api)
    await all_events(response)

    async def published() -> bool:
        return await redis.ttl(keys.turn_key(start.data["turn_id"])) > keys.TURN_LEASE_S

    await until(published)
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
