"""Redis killed, frozen, full or holding nonsense; Groq failing in every way."""

import asyncio
import logging
from typing import Any

import pytest
from aiohttp import ClientSession
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer

SESSION = f"{BASE}/history/s"


async def chat(api: ClientSession, message: str = "Hello", **fields: Any) -> Any:
    response = await api.post(
        f"{BASE}/chat", json={"message": message, "session_id": "s", **fields}
    )
    assert response.status == 200, await response.text()
    return await response.json()


async def contents(api: ClientSession, session_id: str = "s") -> list[str]:
    response = await api.get(f"{BASE}/history/{session_id}")
    return [message["content"] for message in (await response.json())["messages"]]


@pytest.fixture
async def fragile(serve: Serve, own_redis_server: RedisServer) -> ClientSession:
    """The service over a server that this test may harm."""
    return await serve(redis_url=SecretStr(own_redis_server.url()), redis_timeout_s=0.5)


async def assert_degraded(api: ClientSession) -> None:
    answer = await chat(api, "in the dark")
    assert answer["history_saved"] is False
    assert answer["message"].endswith("Messages received: 1.")
    for method, path in [
        ("GET", SESSION),
        ("DELETE", SESSION),
        ("GET", f"{BASE}/sessions"),
        ("GET", f"{BASE}/sessions/s"),
    ]:
        await assert_error(await api.request(method, path), 503, "history_unavailable")
    response = await api.get("/readyz")
    body = await response.json()
    assert response.status == 503
    assert response.headers["Retry-After"]
    assert body["checks"] == {"redis": "unreachable", "groq": "ok"}
    assert body["error"]["message"] == "redis: unreachable"
    assert (await api.get("/healthz")).status == 200


async def test_a_killed_redis_degrades_the_service_until_it_is_back(
    fragile: ClientSession, own_redis_server: RedisServer
) -> None:
    first = await chat(fragile, "before")
    await asyncio.to_thread(own_redis_server.sync)
    own_redis_server.kill()
    await assert_degraded(fragile)

    own_redis_server.start()
    again = await chat(fragile, "after")

    assert again["history_saved"] is True
    assert await contents(fragile) == ["before", first["message"], "after", again["message"]]
    assert (await fragile.get("/readyz")).status == 200


async def test_a_frozen_redis_degrades_the_service_within_its_deadline(
    fragile: ClientSession, own_redis_server: RedisServer
) -> None:
    await chat(fragile, "before")
    own_redis_server.freeze()
    async with asyncio.timeout(20):
        await assert_degraded(fragile)

    own_redis_server.thaw()
    assert (await chat(fragile, "after"))["history_saved"] is True


async def test_a_redis_that_was_never_there_is_no_reason_not_to_start(
    serve: Serve, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis_server.kill()
    api = await serve(redis_url=SecretStr(own_redis_server.url()))

    await assert_degraded(api)
    assert (
        "[Redis Chat] WARNING: Could not connect to Redis at "
        f"unix://{own_redis_server.socket}" in caplog.messages
    )
    own_redis_server.start()
    assert (await chat(api))["history_saved"] is True


async def test_an_outage_during_the_completion_loses_nothing_once_it_is_over(
    fragile: ClientSession, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    own_redis_server.kill()

    async def come_back() -> None:
        own_redis_server.start()

    groq.before_response = come_back
    answer = await chat(fragile, "asked while Redis was away")

    assert answer["history_saved"] is True
    assert await contents(fragile) == ["asked while Redis was away", answer["message"]]


async def test_a_question_that_could_not_be_saved_is_saved_when_the_model_fails(
    fragile: ClientSession, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    own_redis_server.kill()

    async def come_back_and_fail() -> None:
        own_redis_server.start()
        groq.options.fail = "400"

    groq.before_response = come_back_and_fail
    body = {"message": "asked while Redis was away", "session_id": "s"}
    response = await fragile.post(f"{BASE}/chat", json=body)

    await assert_error(response, 400, "completion_rejected")
    assert await contents(fragile) == ["asked while Redis was away"]


async def test_a_full_redis_keeps_what_it_has_and_takes_no_more(
    fragile: ClientSession, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await chat(fragile, "kept")
    with own_redis_server.client() as client:
        client.config_set("maxmemory", 1)
    answer = await chat(fragile, "refused-text")

    assert answer["history_saved"] is False
    assert (await contents(fragile))[0] == "kept"
    assert len(await contents(fragile)) == 2
    assert "refused-text" not in caplog.text


async def test_a_redis_that_refuses_writes_for_now_is_unavailable_not_broken(
    fragile: ClientSession, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    first = await chat(fragile, "kept")
    with own_redis_server.client() as client:
        client.config_set("min-replicas-to-write", 1)
    answer = await chat(fragile, "refused-text")

    assert answer["history_saved"] is False
    await assert_error(await fragile.delete(SESSION), 503, "history_unavailable")
    assert await contents(fragile) == ["kept", first["message"]]
    assert "NOREPLICAS" in caplog.text
    assert "refused-text" not in caplog.text


async def test_another_kind_of_value_under_a_sessions_key_harms_no_other_session(
    api: ClientSession, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.set("chat:session:s", "not a sorted set")

    assert (await chat(api, "secret-text"))["history_saved"] is False
    assert (await chat(api, session_id="other"))["history_saved"] is True
    await assert_error(await api.get(SESSION), 500, "history_failed")
    assert "WRONGTYPE" in caplog.text
    assert "secret-text" not in caplog.text


async def test_corrupt_members_are_skipped_with_one_warning(
    api: ClientSession, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await chat(api, "good")
    now = 1.8e9
    corrupt = [
        b"not json",
        b"\xff\xfe",
        b"[]",
        b'{"role":"user"}',
        b'{"role":"martian","content":"x"}',
        b'{"role":"user","content":5}',
        b'{"role":["user"],"content":"x"}',
    ]
    await redis.zadd("chat:session:s", dict.fromkeys(corrupt, now))
    caplog.set_level(logging.WARNING)
    shown = await (await api.get(SESSION)).json()

    assert [message["content"] for message in shown["messages"]] == ["good", answer["message"]]
    assert shown["message_count"] == 2 + 7
    assert caplog.messages == ["skipped 7 corrupt member(s) of session s"]
    assert (await chat(api, "and on"))["history_saved"] is True


@pytest.fixture
async def dead_groq(serve: Serve) -> ClientSession:
    """The service where nothing answers at Groq's address."""
    return await serve(groq_base_url="http://127.0.0.1:9", groq_max_retries=0)


async def test_the_question_stays_saved_when_groq_is_away(dead_groq: ClientSession) -> None:
    body = {"message": "Anyone?", "session_id": "s"}
    response = await dead_groq.post(f"{BASE}/chat", json=body)

    await assert_error(response, 502, "completion_unavailable")
    assert await contents(dead_groq) == ["Anyone?"]


async def test_without_a_key_chat_says_so_and_history_works(serve: Serve) -> None:
    api = await serve(groq_api_key=None)
    response = await api.post(f"{BASE}/chat", json={"message": "Hello", "session_id": "s"})

    await assert_error(response, 503, "completion_not_configured")
    assert await contents(api) == ["Hello"]
    ready = await api.get("/readyz")
    assert ready.status == 503
    assert (await ready.json())["checks"] == {"redis": "ok", "groq": "no API key"}
