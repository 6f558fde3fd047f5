"""The private internals of redis-py and Groq's SDK exist and behave as expected."""

import asyncio

import httpx
import pytest
from groq import AsyncGroq, RateLimitError
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from groqchat.storage import redis_internals
from groqchat.storage.redis_internals import SOCKET_CONNECTIONS, execute_raw
from tests.support.redis_servers import RedisServer


async def test_a_connection_has_the_parser_and_the_streams_that_execute_raw_uses(
    redis: Redis,
) -> None:
    connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call] # redis-py has no types here
    assert type(connection) in SOCKET_CONNECTIONS
    assert isinstance(connection._reader, asyncio.StreamReader)
    assert isinstance(connection._writer, asyncio.StreamWriter)
    assert connection._parser._reader.gets() is NOT_ENOUGH_DATA
    await redis.connection_pool.release(connection)


@pytest.mark.parametrize("read_bytes", [1, 7, 65536])
async def test_replies_are_complete_for_any_read_size(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, read_bytes: int
) -> None:
    monkeypatch.setattr(redis_internals, "READ_BYTES", read_bytes)
    connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call] # redis-py has no types here
    commands = [("SET", "k", "value"), ("GET", "k"), ("LPUSH", "k", 1), ("MGET", "k", "none")]
    request = b"".join(connection.pack_commands(commands))
    ok, value, error, values = await execute_raw(connection, request, len(commands))

    assert (ok, value, values) == (b"OK", b"value", [b"value", None])
    assert isinstance(error, ResponseError)
    assert await connection.can_read() is False
    await redis.connection_pool.release(connection)


async def test_a_connection_that_closes_between_replies_is_an_error(
    own_redis_server: RedisServer,
) -> None:
    async with Redis.from_url(own_redis_server.url(), protocol=2) as client:
        connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call] # redis-py has no types here
        ping = b"".join(connection.pack_command("PING"))
        reading = asyncio.create_task(execute_raw(connection, ping, 2))
        await asyncio.sleep(0)
        own_redis_server.kill()
        with pytest.raises((RedisConnectionError, OSError)):
            await reading
        await connection.disconnect(nowait=True)
        await client.connection_pool.release(connection)


async def test_the_sdk_converts_an_error_response_to_its_exception() -> None:
    response = httpx.Response(
        429,
        json={"error": {"message": "slow down", "code": "rate_limit_exceeded"}},
        request=httpx.Request("POST", "http://groq.test"),
    )
    async with AsyncGroq(api_key="any") as client:
        error = client._make_status_error_from_response(response)
    assert type(error) is RateLimitError
    assert error.body == {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
    assert client.default_headers["Authorization"] == "Bearer any"
