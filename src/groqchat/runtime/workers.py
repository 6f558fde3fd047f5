"""The supervisor of several worker processes that share one port."""

import asyncio
import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import orjson
from pydantic import SecretStr

from groqchat.configuration import load_settings
from groqchat.errors import ConfigurationError
from groqchat.retry import Backoff
from groqchat.runtime.runner import IDLE_GRACE_S, SHUTDOWN_TIMEOUT_S
from groqchat.runtime.server import listen_error, stop_signal
from groqchat.runtime.start_log import log_addresses
from groqchat.settings import Settings
from groqchat.storage.connection import embedded_server

# Delays before the restart of a worker that dies repeatedly.
RESTART_BACKOFF = Backoff(base_s=0.2, cap_s=10.0)
# A worker that ran longer than this counts as started successfully.
STABLE_S = 10.0
# The time that a worker needs besides its grace period: it waits twice for late requests, and
# aiohttp waits twice for open connections. The rest is for closing.
STOP_MARGIN_S = 2 * IDLE_GRACE_S + 2 * SHUTDOWN_TIMEOUT_S + 1.0
# The exit status of a worker with invalid settings (EX_CONFIG in sysexits.h); a restart is useless.
CONFIGURATION_STATUS = 78
# The CPU limit of a container (cgroup v2): quota and period in microseconds, or `max`.
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")

log = logging.getLogger("groqchat")


async def serve_workers(settings: Settings) -> None:
    """Serve from `WORKERS` processes until SIGINT or SIGTERM.

    Each worker listens on the port itself (SO_REUSEPORT), and the kernel distributes connections.
    A worker stops when this process ends, even if this process is killed. Raises
    ConfigurationError if the workers cannot start with these settings.
    """
    processes: set[asyncio.subprocess.Process] = set()
    stop = stop_signal(lambda: _kill(processes))
    count = settings.workers or available_cpus()
    if settings.redis_address.startswith("memory:") and count > 1:
        raise ConfigurationError("REDIS_URL=memory: cannot be shared by workers: set WORKERS=1")
    with reserved_port(settings.host, settings.port) as port:
        async with _shared_redis(settings) as redis_url:
            settings_of_workers = _settings_of_workers(settings, redis_url, port)
            workers = _Workers(settings_of_workers, count, stop, processes)
            try:
                async with asyncio.TaskGroup() as supervisors:
                    for number in range(1, count + 1):
                        supervisors.create_task(_supervise(number, workers))
            except* ConfigurationError as errors:
                raise ConfigurationError("the workers cannot start") from errors.exceptions[0]


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, by affinity and by cgroup quota."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:
        allowed = os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = CPU_MAX.read_text(encoding="ascii").split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    return allowed


@dataclass
class _Workers:
    """The settings that all workers receive, the running workers, and those that are ready."""

    settings: Settings
    count: int
    stop: asyncio.Event
    processes: set[asyncio.subprocess.Process]
    ready: set[int] = field(default_factory=set)

    def set_ready(self, number: int) -> None:
        """Log that a worker listens, and the addresses once all of them do."""
        log.info("worker %d is ready", number)
        is_first_time = number not in self.ready
        self.ready.add(number)
        if is_first_time and len(self.ready) == self.count:
            log_addresses(self.settings.host, self.settings.port)


async def _supervise(number: int, workers: _Workers) -> None:
    """Run one worker until `stop` is set; restart it whenever it ends."""
    failures = 0
    stop = workers.stop
    while not stop.is_set():
        started = time.monotonic()
        status = await _run_worker(number, workers)
        if stop.is_set():
            return
        if status == CONFIGURATION_STATUS:
            raise ConfigurationError(f"worker {number} ended with status {status}")
        if time.monotonic() - started > STABLE_S:
            failures = 0
        delay_s = RESTART_BACKOFF.delay_s(failures)
        failures += 1
        log.error("worker %d ended (%s); restarting it in %.1f s", number, status, delay_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), delay_s)


async def _run_worker(number: int, workers: _Workers) -> int | None:
    """Run a worker until it ends or `stop` is set; return its exit status, None if not started."""
    try:
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "groqchat", "serve", "--worker"),
            # Carries the settings. The worker stops when this pipe closes, that is, when the
            # supervisor ends.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    except OSError as error:
        log.error("could not start worker %d: %s", number, error)  # noqa: TRY400 - an OSError says enough
        return None
    workers.processes.add(worker)
    died = asyncio.create_task(worker.wait())
    stopping = asyncio.create_task(workers.stop.wait())
    starting = asyncio.create_task(_start(worker, number, workers))
    try:
        await asyncio.wait([died, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        starting.cancel()
        await _stop_worker(worker, workers.settings.shutdown_grace_s + STOP_MARGIN_S)
    workers.processes.discard(worker)
    return worker.returncode


async def _start(worker: asyncio.subprocess.Process, number: int, workers: _Workers) -> None:
    """Send the settings to a worker and wait until it listens."""
    assert worker.stdin is not None  # noqa: S101 - both are pipes
    assert worker.stdout is not None  # noqa: S101
    with suppress(ConnectionError):
        worker.stdin.write(encode_settings(workers.settings))
        await worker.stdin.drain()
        if await worker.stdout.readline():
            workers.set_ready(number)


async def _stop_worker(worker: asyncio.subprocess.Process, timeout_s: float) -> None:
    if worker.returncode is None:
        worker.terminate()
    try:
        await asyncio.wait_for(worker.wait(), timeout_s)
    except TimeoutError:
        log.error("a worker did not stop in time; killing it")  # noqa: TRY400 - a timeout has no traceback
        worker.kill()
        await worker.wait()
    except asyncio.CancelledError:
        # A second SIGINT has killed the worker; this process ends after it.
        await worker.wait()
        raise


def _kill(processes: Iterable[asyncio.subprocess.Process]) -> None:
    """End workers at once; their streams end without a further event."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Bind a port without listening on it, so that no other program binds it between restarts."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigurationError("this system does not support SO_REUSEPORT: set WORKERS=1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections of an earlier process stay in TIME_WAIT for a minute.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            _check_free(family, (host, port))
            reservation.bind((host, port))
        except OSError as error:
            raise listen_error(host, port, error) from error
        # From now on, another service's check fails, even before the workers listen.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield int(reservation.getsockname()[1])


def _check_free(family: socket.AddressFamily, address: tuple[str, int]) -> None:
    """Raise OSError if another process listens on the port, even with SO_REUSEPORT."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


@asynccontextmanager
async def _shared_redis(settings: Settings) -> AsyncIterator[str | None]:
    """Return the Redis URL for the workers; start the embedded server if it is configured."""
    server = embedded_server(settings)
    if server is None:
        yield settings.redis_url.get_secret_value() if settings.redis_url else None
        return
    async with server:
        yield f"unix://{quote(str(server.socket))}"


def _settings_of_workers(settings: Settings, redis_url: str | None, port: int) -> Settings:
    secret = None if redis_url is None else SecretStr(redis_url)
    return settings.model_copy(update={"port": port, "workers": 1, "redis_url": secret})


def encode_settings(settings: Settings) -> bytes:
    """Return all settings, with their secrets, as one line."""
    values = {name: _revealed(getattr(settings, name)) for name in Settings.model_fields}
    return orjson.dumps(values) + b"\n"


def decode_settings(line: bytes) -> Settings:
    """Return the settings that a supervisor sent, whatever the environment and `.env` contain."""
    return load_settings(_env_file=None, **orjson.loads(line))


def _revealed(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
