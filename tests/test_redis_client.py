"""The Redis client: its options, and how a command attaches to a running embedded server."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from groqchat.errors import ConfigurationError
from groqchat.settings import Settings
from groqchat.storage.connection import attach_redis, embedded_server, open_redis
from groqchat.storage.embedded import EmbeddedServer

OPTIONS = {
    "socket_timeout": 1.5,
    "socket_connect_timeout": 1.5,
    "client_name": "groqchat",
    "protocol": 2,
}


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="groqchat ") as name:
        yield Path(name) / "nested" / "data"


def pool_of(redis: Redis) -> tuple[BlockingConnectionPool, dict[str, Any]]:
    """Return the pool of a client, and the options of its connections except its retries."""
    pool = redis.connection_pool
    assert isinstance(pool, BlockingConnectionPool)
    options = dict(pool.connection_kwargs)
    retry = options.pop("retry")
    assert retry == Retry(ExponentialWithJitterBackoff(cap=0.2, base=0.02), 2)
    # redis-py adds this object of its own.
    options.pop("himport_registry", None)
    return pool, options


async def test_the_four_variables_and_the_limits_configure_the_pool() -> None:
    settings = Settings(
        redis_host="redis.test",
        redis_port=6380,
        redis_db=4,
        redis_password="secret",
        redis_timeout_s=1.5,
        redis_max_connections=7,
    )
    async with open_redis(settings) as redis:
        pool, options = pool_of(redis)
    assert options == {
        "host": "redis.test",
        "port": 6380,
        "db": 4,
        "password": "secret",
        **OPTIONS,
    }
    assert (pool.max_connections, pool.timeout) == (7, 1.5)


async def test_a_server_without_a_password_receives_none() -> None:
    async with open_redis(Settings(redis_timeout_s=1.5)) as redis:
        _, options = pool_of(redis)
    assert options == {
        "host": "localhost",
        "port": 6379,
        "db": 0,
        "password": None,
        **OPTIONS,
    }


async def test_a_url_configures_the_same_limits() -> None:
    settings = Settings(
        redis_url="unix:///run/redis.sock?db=3", redis_timeout_s=1.5, redis_max_connections=7
    )
    async with open_redis(settings) as redis:
        pool, options = pool_of(redis)
    assert options == {"path": "/run/redis.sock", "db": 3, **OPTIONS}
    assert pool.connection_class is UnixDomainSocketConnection
    assert (pool.max_connections, pool.timeout) == (7, 1.5)


async def test_memory_without_fakeredis_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    with pytest.raises(ConfigurationError) as failed:
        await open_redis(Settings(redis_url="memory:")).__aenter__()
    assert failed.value.detail == "REDIS_URL=memory: needs fakeredis: pip install 'fakeredis[lua]'"
    assert isinstance(failed.value.__cause__, ImportError)


def test_only_an_embedded_url_configures_an_embedded_server() -> None:
    for settings in (
        Settings(),
        Settings(redis_url="redis://localhost"),
        Settings(redis_url="memory:"),
    ):
        assert embedded_server(settings) is None


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("embedded:/var/lib/chat", Path("/var/lib/chat")),
        ("embedded:~/chat", Path.home() / "chat"),
        ("embedded:data", Path.cwd() / "data"),
        ("embedded:/a/embedded:", Path("/a/embedded:")),
    ],
)
def test_the_directory_of_an_embedded_server_is_in_the_url(url: str, path: Path) -> None:
    server = embedded_server(Settings(redis_url=url))
    assert server is not None
    assert server.directory == path
    assert server.socket == path / "redis.sock"


async def test_a_command_attaches_to_the_server_of_a_running_service(directory: Path) -> None:
    settings = Settings(redis_url=f"embedded:{directory}", redis_timeout_s=1.5)
    async with open_redis(settings) as service:
        await service.set("key", "value")
        async with attach_redis(settings) as command:
            assert await command.get("key") == b"value"
            assert pool_of(command)[1] == {"path": f"{directory}/redis.sock", **OPTIONS}
        # The service still runs its server.
        assert await service.get("key") == b"value"


async def test_a_command_starts_the_server_if_no_service_runs(directory: Path) -> None:
    settings = Settings(redis_url=f"embedded:{directory}")
    server = EmbeddedServer(directory)
    assert server.is_locked is False
    assert not directory.exists()
    async with attach_redis(settings) as command:
        assert await command.ping() is True
        assert server.is_locked is True
    assert server.is_locked is False


async def test_a_command_opens_another_server_as_the_service_does() -> None:
    async with attach_redis(Settings(redis_host="redis.test", redis_timeout_s=1.5)) as redis:
        assert pool_of(redis)[1]["host"] == "redis.test"
