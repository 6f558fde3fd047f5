"""Failures: Redis killed, frozen, full or with corrupt data; Groq unreachable."""

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
from tests.support.streams import wait_until

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
async def own_redis_api(serve: Serve, own_redis_server: RedisServer) -> ClientSession:
    """A client of a service whose Redis server the test may stop or break."""
    return await serve(redis_url=SecretStr(own_redis_server.url()), redis_timeout_s=0.5)


async def assert_degraded(api: ClientSession) -> None:
    answer = await chat(api, "sent without Redis")
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
    assert body["checks"]["redis"] == "unreachable"
    assert body["error"]["message"] == "redis: unreachable"
    assert (await api.get("/healthz")).status == 200


async def is_ready(api: ClientSession) -> bool:
    return (await api.get("/readyz")).status == 200


async def test_without_redis_the_service_is_degraded_until_redis_restarts(
    own_redis_api: ClientSession, own_redis_server: RedisServer
) -> None:
    first = await chat(own_redis_api, "before")
    await asyncio.to_thread(own_redis_server.sync)
    own_redis_server.kill()
    await assert_degraded(own_redis_api)

    own_redis_server.start()
    second = await chat(own_redis_api, "after")

    assert second["history_saved"] is True
    assert await contents(own_redis_api) == ["before", first["message"], "after", second["message"]]
    await wait_until(lambda: is_ready(own_redis_api))


async def test_with_a_frozen_redis_the_service_is_degraded_within_its_deadline(
    own_redis_api: ClientSession, own_redis_server: RedisServer
) -> None:
    await chat(own_redis_api, "before")
    own_redis_server.freeze()
    async with asyncio.timeout(20):
        await assert_degraded(own_redis_api)

    own_redis_server.thaw()
    assert (await chat(own_redis_api, "after"))["history_saved"] is True


async def test_the_service_starts_without_redis(
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


async def test_both_messages_are_stored_if_redis_restarts_during_the_completion(
    own_redis_api: ClientSession, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    own_redis_server.kill()

    async def restart_redis() -> None:
        own_redis_server.start()

    groq.before_response = restart_redis
    answer = await chat(own_redis_api, "sent without Redis")

    assert answer["history_saved"] is True
    assert await contents(own_redis_api) == ["sent without Redis", answer["message"]]


async def test_an_unsaved_user_message_is_stored_when_the_completion_fails(
    own_redis_api: ClientSession, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    own_redis_server.kill()

    async def restart_redis_and_fail() -> None:
        own_redis_server.start()
        groq.options.fail = "404"

    groq.before_response = restart_redis_and_fail
    body = {"message": "sent without Redis", "session_id": "s"}
    response = await own_redis_api.post(f"{BASE}/chat", json=body)

    await assert_error(response, 422, "unknown_model", param="model")
    assert await contents(own_redis_api) == ["sent without Redis"]


async def test_a_full_redis_preserves_its_messages_and_stores_no_more(
    own_redis_api: ClientSession, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await chat(own_redis_api, "stored")
    with own_redis_server.client() as client:
        client.config_set("maxmemory", 1)
    answer = await chat(own_redis_api, "rejected-text")

    assert answer["history_saved"] is False
    assert (await contents(own_redis_api))[0] == "stored"
    assert len(await contents(own_redis_api)) == 2
    assert "rejected-text" not in caplog.text


async def test_a_redis_that_rejects_writes_for_now_is_unavailable(
    own_redis_api: ClientSession, own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    first = await chat(own_redis_api, "stored")
    with own_redis_server.client() as client:
        client.config_set("min-replicas-to-write", 1)
    answer = await chat(own_redis_api, "rejected-text")

    assert answer["history_saved"] is False
    await assert_error(await own_redis_api.delete(SESSION), 503, "history_unavailable")
    assert await contents(own_redis_api) == ["stored", first["message"]]
    assert "NOREPLICAS" in caplog.text
    assert "rejected-text" not in caplog.text


async def test_a_session_key_of_the_wrong_type_does_not_affect_other_sessions(
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
    assert (await chat(api, "next"))["history_saved"] is True


@pytest.fixture
async def api_without_groq(serve: Serve) -> ClientSession:
    """A client of a service that cannot reach Groq."""
    return await serve(groq_base_url="http://127.0.0.1:9", groq_max_retries=0)


async def test_the_user_message_stays_stored_when_groq_is_unreachable(
    api_without_groq: ClientSession,
) -> None:
    body = {"message": "Anyone?", "session_id": "s"}
    response = await api_without_groq.post(f"{BASE}/chat", json=body)

    await assert_error(response, 502, "completion_unavailable")
    assert await contents(api_without_groq) == ["Anyone?"]


async def test_without_an_api_key_chat_is_a_503_and_the_history_works(serve: Serve) -> None:
    api = await serve(groq_api_key=None)
    response = await api.post(f"{BASE}/chat", json={"message": "Hello", "session_id": "s"})

    await assert_error(response, 503, "completion_not_configured")
    assert await contents(api) == ["Hello"]
    ready = await api.get("/readyz")
    assert ready.status == 503
    assert (await ready.json())["checks"] == {"redis": "ok", "groq": "no API key"}
