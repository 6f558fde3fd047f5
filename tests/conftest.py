import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis

from groqchat.runtime.server import create_runner
from groqchat.runtime.workers import available_cpus
from groqchat.services.history_store import HistoryStore
from groqchat.settings import Settings
from tests.support.groq import MockGroq
from tests.support.in_process import new_settings, running
from tests.support.redis_servers import RedisServer, server_binaries
from tests.support.store import new_store
from tests.support.turn_service import Service, open_service

Serve = Callable[..., Awaitable[ClientSession]]

# Tests wait more than half of their time: for timeouts, for child processes, for Redis.
WORKERS_PER_CPU = 3
# Each worker needs several seconds to import and to collect the tests.
MAX_WORKERS = 16

_databases = itertools.count(1)


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of test processes for `--numprocesses auto`."""
    return min(WORKERS_PER_CPU * available_cpus(), MAX_WORKERS)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove settings from the environment; ignore a .env file."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A working directory with a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="groqchat-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def real_servers() -> Iterator[dict[str, RedisServer]]:
    """One running server for each binary; tests share these servers and never stop them."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(RedisServer(binary))
            for name, binary in server_binaries().items()
        }


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A real server that the test may stop or break."""
    with RedisServer(server_binaries()["valkey"]) as server:
        yield server


@pytest.fixture
def redis_url(real_servers: dict[str, RedisServer]) -> str:
    """The URL of an empty database on a real server."""
    return real_servers["valkey"].url(next(_databases))


@pytest.fixture(scope="module")
def shared_redis_url(real_servers: dict[str, RedisServer]) -> str:
    """The URL of the database of `shared_api`."""
    return real_servers["valkey"].url(next(_databases))


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of the database at `redis_url`."""
    async with Redis.from_url(redis_url, protocol=2) as client:
        yield client


@pytest.fixture(params=["fakeredis", *server_binaries()])
async def any_redis(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """An empty database of fakeredis, and one on each real server."""
    if request.param == "fakeredis":
        async with FakeAsyncRedis() as client:
            yield client
        return
    servers: dict[str, RedisServer] = request.getfixturevalue("real_servers")
    url = servers[request.param].url(next(_databases))
    async with Redis.from_url(url, protocol=2) as client:
        yield client


@pytest.fixture
def store(any_redis: Redis) -> HistoryStore:
    """The history store on `any_redis`."""
    return new_store(any_redis)


@asynccontextmanager
async def serve_mock() -> AsyncIterator[MockGroq]:
    """Run the mock Groq server on a real socket."""
    mock = MockGroq()
    async with TestServer(mock.app()) as server:
        mock.url = str(server.make_url("/")).rstrip("/")
        yield mock


@pytest.fixture
async def groq() -> AsyncIterator[MockGroq]:
    """The mock Groq server on a real socket."""
    async with serve_mock() as mock:
        yield mock


@pytest.fixture
async def serve(redis_url: str, groq: MockGroq) -> AsyncIterator[Serve]:
    """A function that starts the service with the given settings and returns a client of it."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> ClientSession:
            runner = create_runner(new_settings(redis_url, groq.url, **changes))
            url = await stack.enter_async_context(running(runner))
            return await stack.enter_async_context(ClientSession(url))

        yield start


@pytest.fixture
async def api(serve: Serve) -> ClientSession:
    """A client of the service with default settings."""
    return await serve()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_groq() -> AsyncIterator[MockGroq]:
    """The mock Groq server of `shared_api`."""
    async with serve_mock() as mock:
        yield mock


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_api(shared_redis_url: str, shared_groq: MockGroq) -> AsyncIterator[ClientSession]:
    """A client of one service for all tests of a module, which run in one event loop.

    For tests that leave the service as it is. The module needs
    `pytestmark = pytest.mark.asyncio(loop_scope="module")`.
    """
    runner = create_runner(new_settings(shared_redis_url, shared_groq.url))
    async with running(runner) as url, ClientSession(url) as client:
        yield client


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """A chat service on an empty database of fakeredis, with room for two turns."""
    async with open_service() as service:
        yield service
