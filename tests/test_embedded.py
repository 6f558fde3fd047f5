"""The embedded server: its data, its locks, its start and its end."""

import asyncio
import fcntl
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from groqchat.errors import ConfigurationError
from groqchat.storage.embedded import EmbeddedServer


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="groqchat-") as name:
        yield Path(name) / "data"


def client(server: EmbeddedServer) -> Redis:
    return Redis(unix_socket_path=str(server.socket), protocol=2)


async def test_data_survives_a_restart(directory: Path) -> None:
    async with EmbeddedServer(directory) as server, client(server) as redis:
        await redis.set("key", "value")
    async with EmbeddedServer(directory) as server, client(server) as redis:
        assert await redis.get("key") == b"value"


async def test_only_the_owner_can_access_directory_and_socket(directory: Path) -> None:
    async with EmbeddedServer(directory) as server, client(server) as redis:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
        settings = await redis.config_get(
            "appendonly", "maxmemory-policy", "port", "zset-max-listpack-value"
        )
    assert settings == {
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "port": "0",
        "zset-max-listpack-value": "1024",
    }


async def test_the_server_stops_with_the_service(directory: Path) -> None:
    async with EmbeddedServer(directory) as server:
        pid = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_error_for_a_directory_in_use_contains_the_pid_of_its_service(
    directory: Path,
) -> None:
    async with EmbeddedServer(directory) as server, client(server) as redis:
        with pytest.raises(ConfigurationError, match=f"pid {os.getpid()}.*uses"):
            await EmbeddedServer(directory).__aenter__()
        assert await redis.ping() is True


@pytest.mark.parametrize("frozen", [False, True])
async def test_the_server_of_a_killed_service_is_replaced_and_its_data_is_preserved(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    frozen: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    monkeypatch.setattr("groqchat.storage.embedded.STOP_TIMEOUT_S", 1.0)
    orphan = EmbeddedServer(directory)
    await orphan.__aenter__()
    async with client(orphan) as redis:
        await redis.set("key", "value")
    pid = orphan.pid
    abandon(orphan)
    if frozen:
        os.kill(pid, signal.SIGSTOP)

    async with EmbeddedServer(directory) as server, client(server) as redis:
        assert server.pid != pid
        assert await redis.get("key") == b"value"


async def test_a_process_with_the_pid_of_a_stale_pid_file_is_not_killed(directory: Path) -> None:
    async with EmbeddedServer(directory):
        pass
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    (directory / "valkey.pid").write_text(f"{sleeper.pid}\n")

    async with EmbeddedServer(directory) as server, client(server) as redis:
        assert await redis.ping() is True
        assert sleeper.returncode is None
    sleeper.kill()
    await sleeper.wait()


async def test_a_server_that_dies_is_restarted_with_its_data(directory: Path) -> None:
    async with EmbeddedServer(directory) as server, client(server) as redis:
        await redis.set("key", "value")
        os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while await value(server) is None:
                await asyncio.sleep(0.05)
        assert await value(server) == b"value"


async def test_a_failed_restart_is_retried(directory: Path) -> None:
    async with EmbeddedServer(directory) as server:
        with (directory / "valkey.lock").open("a") as lock:
            os.kill(server.pid, signal.SIGKILL)
            async with asyncio.timeout(20):
                while not try_lock(lock):
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0.5)
        async with asyncio.timeout(20):
            while await value(server, b"ready") is None:
                await asyncio.sleep(0.05)
        assert await value(server, b"ready") == b"ready"


async def test_the_error_for_a_failed_start_contains_the_log_of_the_server(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"did not start(.|\n)*FATAL CONFIG FILE ERROR"):
        await EmbeddedServer(directory, {"no-such-option": "1"}).__aenter__()
    async with EmbeddedServer(directory) as server, client(server) as redis:
        assert await redis.ping() is True


async def test_a_path_that_is_too_long_for_a_unix_socket_is_rejected(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match="too long for a unix socket"):
        await EmbeddedServer(directory / ("d" * 100)).__aenter__()


async def test_a_directory_that_cannot_be_created_is_rejected(directory: Path) -> None:
    directory.parent.joinpath("file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot use"):
        await EmbeddedServer(directory.parent / "file" / "data").__aenter__()


def abandon(server: EmbeddedServer) -> None:
    """Release a server as a killed service does: without stopping it."""
    assert server._supervisor is not None
    server._supervisor.cancel()
    assert server._lock is not None
    server._lock.close()


def try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


async def value(server: EmbeddedServer, default: bytes | None = None) -> bytes | None:
    """Return the value of `key`, or `default` if given; None if the server does not reply."""
    try:
        async with client(server) as redis:
            if default is not None:
                await redis.ping()
                return default
            found = await redis.get("key")
    except RedisError:
        return None
    assert not isinstance(found, str)
    return found
