"""Several processes behind one port: started, replaced when they die, drained at the end."""

import asyncio
import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from groqchat.errors import ConfigurationError
from groqchat.server import CLOSE_TIMEOUT_S, cannot_listen, http_address, stop_signal
from groqchat.settings import Settings
from groqchat.storage.connection import embedded_server

# Waits between restarts of a worker that dies again and again.
RESTART_MIN_S = 0.2
RESTART_MAX_S = 10.0
# What a worker needs beyond its turns' grace time: to close its connections, twice over.
STOP_MARGIN_S = 3 * CLOSE_TIMEOUT_S
# What a worker ends with that no restart would help (EX_CONFIG of sysexits.h).
CONFIGURATION_STATUS = 78
# The limit of a container (cgroup v2): microseconds in a period, or `max`.
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")

log = logging.getLogger("groqchat")


async def serve_workers(settings: Settings) -> None:
    """Serve from `WORKERS` processes until SIGINT or SIGTERM.

    Each listens on the port by itself (SO_REUSEPORT), so the system spreads connections over
    them. A worker ends by itself when this process does, however that ends. ConfigurationError
    where a worker cannot start as it is set up.
    """
    stop = stop_signal()
    count = settings.workers or available_cpus()
    if settings.redis_place.startswith("memory:") and count > 1:
        raise ConfigurationError("REDIS_URL=memory: is one for each process: set WORKERS=1")
    with reserved_port(settings.host, settings.port) as port:
        async with _shared_redis(settings) as redis_url:
            variables = _variables(settings, redis_url, port)
            log.info("%d workers answer at %s", count, http_address(settings.host, port))
            try:
                async with asyncio.TaskGroup() as keepers:
                    for number in range(1, count + 1):
                        keepers.create_task(_keep_running(number, variables, stop, settings))
            except* ConfigurationError as errors:
                raise ConfigurationError("no worker can start") from errors.exceptions[0]


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, by affinity and by quota."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:
        allowed = os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = CPU_MAX.read_text(encoding="ascii").split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    return allowed


async def _keep_running(
    number: int, variables: dict[str, str], stop: asyncio.Event, settings: Settings
) -> None:
    """Run one worker, and another in its place whenever it dies, until told to stop."""
    wait_s = RESTART_MIN_S
    while not stop.is_set():
        started = time.monotonic()
        status = await _run_worker(number, variables, stop, settings)
        if stop.is_set():
            return
        if status == CONFIGURATION_STATUS:
            raise ConfigurationError(f"worker {number} ended ({status})")
        wait_s = RESTART_MIN_S if time.monotonic() - started > RESTART_MAX_S else wait_s * 2
        wait_s = min(wait_s, RESTART_MAX_S)
        log.error("worker %d ended (%s); another starts in %.1f s", number, status, wait_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), wait_s)


async def _run_worker(
    number: int, variables: dict[str, str], stop: asyncio.Event, settings: Settings
) -> int | None:
    """Run a worker until it dies or is to stop, and return its status; None if none was started."""
    try:
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "groqchat", "serve", "--worker"),
            env=variables,
            # Its end tells the worker that nobody watches it any more.
            stdin=subprocess.PIPE,
        )
    except OSError as error:
        log.error("worker %d cannot be started: %s", number, error)  # noqa: TRY400 - no trace
        return None
    died = asyncio.create_task(worker.wait())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([died, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        await _end(worker, settings.shutdown_grace_s + STOP_MARGIN_S)
    return worker.returncode


async def _end(worker: asyncio.subprocess.Process, timeout_s: float) -> None:
    if worker.returncode is None:
        worker.terminate()
    try:
        await asyncio.wait_for(worker.wait(), timeout_s)
    except TimeoutError:
        log.error("a worker did not end in time; killing it")  # noqa: TRY400 - nothing to trace
        worker.kill()
        await worker.wait()


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Hold a port without listening on it, so that nobody else takes it between workers."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigurationError("this system cannot share a port: set WORKERS=1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections of a service that has just ended linger for a minute.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            _check_free(family, (host, port))
            holder.bind((host, port))
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        # Whoever probes the port meets it from now on, and not only once workers listen.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield int(holder.getsockname()[1])


def _check_free(family: socket.AddressFamily, address: tuple[str, int]) -> None:
    """Raise OSError where somebody listens who would share the port with a second service."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


@asynccontextmanager
async def _shared_redis(settings: Settings) -> AsyncIterator[str | None]:
    """Give the URL by which workers reach Redis, starting an embedded one for all of them."""
    server = embedded_server(settings)
    if server is None:
        yield settings.redis_url.get_secret_value() if settings.redis_url else None
        return
    async with server:
        yield f"unix://{quote(str(server.socket))}"


def _variables(settings: Settings, redis_url: str | None, port: int) -> dict[str, str]:
    changes = {
        "PORT": str(port),
        "WORKERS": "1",
        "GROQ_BASE_URL": settings.groq_base_url,
    }
    if redis_url is not None:
        changes["REDIS_URL"] = redis_url
    return {**os.environ, **changes}
