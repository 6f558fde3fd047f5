"""GET /readyz: the states of Redis and of Groq."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis
from aiohttp import ClientSession
from pydantic import SecretStr

from groqchat.storage import keys, write_probe
from tests.conftest import Serve
from tests.support.groq import MockGroq
from tests.support.raw_groq import RawGroq
from tests.support.redis_servers import RedisServer
from tests.support.service import run_groqchat
from tests.support.streams import wait_until


@pytest.fixture
def server(own_redis_server: RedisServer) -> redis.Redis:
    """A client that changes the configuration of the server."""
    return own_redis_server.client()


@pytest.fixture
async def api(
    serve: Serve, own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> ClientSession:
    """A client of a service whose Redis server the test may change; each probe writes."""
    monkeypatch.setattr(write_probe, "MAX_AGE_S", -1.0)
    return await serve(redis_url=SecretStr(own_redis_server.url()), redis_timeout_s=0.5)


async def ready(api: ClientSession) -> tuple[int, dict[str, Any]]:
    response = await api.get("/readyz")
    return response.status, await response.json()


async def test_a_full_redis_is_not_ready(api: ClientSession, server: redis.Redis) -> None:
    assert (await ready(api))[0] == 200
    server.config_set("maxmemory-policy", "noeviction")
    server.config_set("maxmemory", 1)
    status, body = await ready(api)
    assert (status, body["checks"]["redis"]) == (503, "rejects writes: OOM")
    assert body["error"]["message"] == "redis: rejects writes: OOM"
    server.config_set("maxmemory", 0)
    assert (await ready(api))[0] == 200


async def test_a_replica_is_not_ready(api: ClientSession, server: redis.Redis) -> None:
    server.replicaof("127.0.0.1", 9)
    status, body = await ready(api)
    assert (status, body["checks"]["redis"]) == (503, "rejects writes: READONLY")


async def test_a_redis_without_enough_replicas_is_not_ready(
    api: ClientSession, server: redis.Redis
) -> None:
    server.config_set("min-replicas-to-write", 1)
    status, body = await ready(api)
    assert (status, body["checks"]["redis"]) == (503, "rejects writes: NOREPLICAS")


@pytest.mark.parametrize("command", ["zadd", "eval"])
async def test_a_redis_user_who_may_not_write_is_not_ready(
    serve: Serve, own_redis_server: RedisServer, server: redis.Redis, command: str
) -> None:
    server.acl_setuser(
        "reader",
        enabled=True,
        passwords=["+secret"],
        keys="*",
        categories=["+@all"],
        commands=[f"-{command}"],
    )
    url = f"{own_redis_server.url()}&username=reader&password=secret"
    api = await serve(redis_url=SecretStr(url), redis_timeout_s=0.5)
    status, body = await ready(api)
    assert (status, body["checks"]["redis"]) == (503, "rejects writes: NOPERM")


async def test_a_frozen_redis_is_unreachable_within_the_deadline(
    api: ClientSession, own_redis_server: RedisServer
) -> None:
    own_redis_server.freeze()
    async with asyncio.timeout(5):
        status, body = await ready(api)
    assert (status, body["checks"]["redis"]) == (503, "unreachable")
    own_redis_server.thaw()
    assert (await ready(api))[0] == 200


async def test_many_probes_share_one_write(
    serve: Serve, own_redis_server: RedisServer, server: redis.Redis
) -> None:
    api = await serve(redis_url=SecretStr(own_redis_server.url()))
    at_start = server.info("commandstats")["cmdstat_zadd"]["calls"]
    assert {status for status, _ in await asyncio.gather(*(ready(api) for _ in range(50)))} == {200}
    assert server.info("commandstats")["cmdstat_zadd"]["calls"] - at_start == 1
    assert server.keys(f"{keys.WRITE_PROBE}*") == []


async def groq_state(api: ClientSession) -> str:
    status, body = await ready(api)
    assert status == 200
    state: str = body["checks"]["groq"]
    return state


async def test_groq_is_ok_only_after_a_successful_request(serve: Serve, groq: MockGroq) -> None:
    release = groq.hold_models()
    api = await serve()
    assert (await ready(api))[1] == {
        "status": "ok",
        "checks": {"redis": "ok", "groq": "not checked yet"},
        "groq_checked_at": None,
    }
    release.set()

    async def is_checked() -> bool:
        return await groq_state(api) == "ok"

    await wait_until(is_checked)
    assert (await ready(api))[1]["groq_checked_at"] is not None


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        ({"groq_base_url": "http://127.0.0.1:9"}, "failing: completion_unavailable"),
        ({"groq_api_key": SecretStr("rejected")}, "rejects the API key"),
    ],
)
async def test_a_failure_of_groq_is_reported_and_does_not_make_the_service_unready(
    serve: Serve, groq: MockGroq, settings: dict[str, Any], state: str
) -> None:
    groq.rejected_key = "rejected"
    api = await serve(groq_max_retries=0, **settings)

    async def is_reported() -> bool:
        return await groq_state(api) == state

    await wait_until(is_reported)


NO_LISTS = [b"{}", b"[]", b'{"data":null}', b'{"data":[1,{"id":2}]}', b"no JSON"]


@pytest.mark.parametrize("models", NO_LISTS)
async def test_a_response_that_is_no_list_of_models_is_a_failure_of_groq(
    serve: Serve, models: bytes
) -> None:
    async with RawGroq(_no_completion, models).serve() as groq:
        api = await serve(groq_base_url=groq.url)
        assert (await api.get("/openai/v1/models")).status == 502
        assert await groq_state(api) == "failing: completion_unavailable"


async def test_an_empty_list_of_models_is_no_failure(serve: Serve) -> None:
    async with RawGroq(_no_completion, b'{"data":[]}').serve() as groq:
        api = await serve(groq_base_url=groq.url)
        assert (await api.get("/openai/v1/models")).status == 200
        assert await groq_state(api) == "ok"


async def test_the_command_check_fails_if_the_response_is_no_list_of_models(
    directory: Path,
) -> None:
    async with RawGroq(_no_completion, b"{}").serve() as groq:
        checked = await asyncio.to_thread(
            run_groqchat,
            "check",
            cwd=directory,
            REDIS_URL="memory:",
            GROQ_API_KEY="k",
            GROQ_BASE_URL=groq.url,
        )
    assert checked.stdout.splitlines()[-1] == (
        "Groq: FAILED: Groq's response is not a list of models"
    )
    assert checked.returncode == 1


async def _no_completion(writer: asyncio.StreamWriter) -> None:
    raise AssertionError("no test requests a completion")
