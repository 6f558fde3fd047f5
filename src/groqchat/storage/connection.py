"""The Redis client for REDIS_URL, or for REDIS_HOST, REDIS_PORT, REDIS_DB and REDIS_PASSWORD."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from groqchat.errors import ConfigurationError
from groqchat.settings import Settings
from groqchat.storage.embedded import EmbeddedServer

# The first command on a connection that the server closed while it was idle fails. redis-py then
# retries it up to this number of times, after short random delays. The deadline of the caller's
# operation limits them.
RETRIES = 2
RETRY_BASE_S = 0.02
RETRY_CAP_S = 0.2


def attach_redis(settings: Settings) -> AbstractAsyncContextManager[Redis]:
    """Open a client, to the embedded server of a running service if there is one."""
    server = embedded_server(settings)
    if server is not None and server.is_locked:
        return _open_server(f"unix://{quote(str(server.socket))}", settings)
    return open_redis(settings)


def open_redis(settings: Settings) -> AbstractAsyncContextManager[Redis]:
    """Open the configured client; start the embedded server if it is configured.

    The client connects with its first command.
    """
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    scheme = url.partition(":")[0]
    return _OPENERS.get(scheme, _open_server)(url, settings)


@asynccontextmanager
async def _open_server(url: str, settings: Settings) -> AsyncIterator[Redis]:
    options = _options(settings)
    if url:
        if url.startswith("rediss:"):
            # OpenSSL would ask for the passphrase of a key on the terminal and block the process.
            options["ssl_password"] = ""
        pool = BlockingConnectionPool.from_url(url, **options)
    else:
        password = settings.redis_password
        pool = BlockingConnectionPool(
            host=settings.redis_host,
            port=settings.redis_port,
            db=settings.redis_db,
            password=password.get_secret_value() if password else None,
            **options,
        )
    client: Redis = Redis.from_pool(pool)
    async with client:
        yield client


def embedded_server(settings: Settings) -> EmbeddedServer | None:
    """Return the configured embedded server, not started; None if another server is configured."""
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    return EmbeddedServer(_directory(url)) if url.startswith("embedded:") else None


@asynccontextmanager
async def _open_embedded(url: str, settings: Settings) -> AsyncIterator[Redis]:
    async with (
        EmbeddedServer(_directory(url)) as server,
        _open_server(f"unix://{quote(str(server.socket))}", settings) as client,
    ):
        yield client


@asynccontextmanager
async def _open_memory(_url: str, _settings: Settings) -> AsyncIterator[Redis]:
    try:
        from fakeredis import FakeAsyncRedis  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise ConfigurationError(
            "REDIS_URL=memory: needs fakeredis: pip install 'fakeredis[lua]'"
        ) from error
    async with FakeAsyncRedis() as client:
        yield client


def _directory(url: str) -> Path:
    return Path(url.removeprefix("embedded:")).expanduser()


def _options(settings: Settings) -> dict[str, Any]:
    timeout_s = settings.redis_timeout_s
    return {
        "max_connections": settings.redis_max_connections,
        "timeout": timeout_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(ExponentialWithJitterBackoff(cap=RETRY_CAP_S, base=RETRY_BASE_S), RETRIES),
        "client_name": "groqchat",
        # With RESP3, the retry above does not work after the server closed an idle connection.
        "protocol": 2,
    }


_Opener = Callable[[str, Settings], AbstractAsyncContextManager[Redis]]
_OPENERS: dict[str, _Opener] = {
    "redis": _open_server,
    "rediss": _open_server,
    "unix": _open_server,
    "embedded": _open_embedded,
    "memory": _open_memory,
}
