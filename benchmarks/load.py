"""A load generator: keep-alive connections, each with one request under way, no HTTP library.

Run as a process of its own, so that it has a core of its own:
`python -m benchmarks.load FILE`, where FILE holds the arguments of `run_load` as JSON. It prints
one JSON object.
"""

import asyncio
import itertools
import json
import resource
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

# Answers before this much time has passed are not counted: caches and pools fill first.
WARM_UP_SHARE = 0.25
TIMEOUT_S = 30.0
# Above this share of its core the generator may be what limits the figure.
BUSY_SHARE = 0.9
NOT_SAVED = b'"history_saved":false'


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run measured; latencies in milliseconds."""

    answers: int
    errors: int
    per_second: float
    p50_ms: float
    p99_ms: float
    generator_cpu_share: float
    peak: int


class _Client(asyncio.Protocol):
    """Sends a request and reads its answer."""

    def __init__(self, run: "_Run") -> None:
        self._run = run
        self._buffer = b""
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, due: float | None = None) -> None:
        assert self._transport is not None
        self._sent = due or time.perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    @abstractmethod
    def answered(self) -> None: ...

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        at = head.find(b"content-length: ") + 16
        end = head.find(b"\r\n", at)
        length = int(head[at : end if end >= 0 else None])
        if len(self._buffer) < head_end + 4 + length:
            return
        # An answer that was not kept is none of those to be counted.
        ok = self._buffer.startswith(b"HTTP/1.1 200") and NOT_SAVED not in self._buffer
        self._buffer = b""
        self._run.count(time.perf_counter() - self._sent, ok=ok)
        self.answered()


class _Connection(_Client):
    """Sends the next request as soon as the last is answered."""

    def __init__(self, requests: Iterator[bytes], run: "_Run") -> None:
        super().__init__(run)
        self._requests = requests
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.answered()

    def answered(self) -> None:
        if self._run.is_over:
            self.close()
        else:
            self.send(next(self._requests))

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done.done():
            self._run.errors += not self._run.is_over
            self.done.set_result(None)


class _Arrival(_Client):
    """Waits for the next arrival once its answer is there."""

    def __init__(self, run: "_Run", idle: "list[_Arrival]") -> None:
        super().__init__(run)
        self._idle = idle

    def answered(self) -> None:
        self._idle.append(self)


class _Run:
    """Counts the answers of all connections between warm-up and end."""

    def __init__(self, seconds: float) -> None:
        begin = time.perf_counter()
        self._counting_from = begin + seconds * WARM_UP_SHARE
        self._end = begin + seconds
        self._seconds = seconds * (1 - WARM_UP_SHARE)
        self._latencies: list[float] = []
        self.errors = 0
        # The most that were under way at once.
        self.peak = 0

    @property
    def is_over(self) -> bool:
        return time.perf_counter() >= self._end

    def count(self, latency_s: float, *, ok: bool) -> None:
        if ok and self._counting_from <= time.perf_counter() < self._end:
            self._latencies.append(latency_s)
        self.errors += not ok

    def result(self, cpu_s: float, wall_s: float) -> Result:
        found = sorted(self._latencies) or [0.0]
        return Result(
            answers=len(self._latencies),
            errors=self.errors,
            per_second=len(self._latencies) / self._seconds,
            p50_ms=found[len(found) // 2] * 1000,
            p99_ms=found[min(len(found) - 1, len(found) * 99 // 100)] * 1000,
            generator_cpu_share=cpu_s / wall_s,
            peak=self.peak,
        )


async def run_load(url: str, *, connections: int, seconds: float, bodies: list[str]) -> Result:
    """Load a URL with POST requests of `bodies` in turn, and return what came of it."""
    parts = urlsplit(url)
    requests = itertools.cycle([_request(parts.path, parts.netloc, body) for body in bodies])
    run = _Run(seconds)
    loop = asyncio.get_running_loop()
    began, cpu = time.perf_counter(), _cpu_s()
    opened = [
        await loop.create_connection(lambda: _Connection(requests, run), parts.hostname, parts.port)
        for _ in range(connections)
    ]
    async with asyncio.timeout(seconds + TIMEOUT_S):
        await asyncio.gather(*(connection.done for _, connection in opened))
    return run.result(_cpu_s() - cpu, time.perf_counter() - began)


async def run_arrivals(url: str, *, per_second: float, seconds: float, bodies: list[str]) -> Result:
    """Send requests at an even pace, however many are under way, each over a connection of its own.

    A connection serves again once its answer is there; there are as many as are under way.
    """
    parts = urlsplit(url)
    run = _Run(seconds)
    loop = asyncio.get_running_loop()
    idle: list[_Arrival] = []
    opened: list[_Arrival] = []
    began, cpu = time.perf_counter(), _cpu_s()
    for number in range(int(per_second * seconds)):
        due = began + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        request = _request(parts.path, parts.netloc, bodies[number % len(bodies)])
        if idle:
            idle.pop().send(request, due)
            run.peak = max(run.peak, len(opened) - len(idle))
            continue
        _, connection = await loop.create_connection(
            lambda: _Arrival(run, idle), parts.hostname, parts.port
        )
        opened.append(connection)
        connection.send(request, due)
        run.peak = max(run.peak, len(opened) - len(idle))
    async with asyncio.timeout(TIMEOUT_S):
        while len(idle) < len(opened):  # noqa: ASYNC110 - nobody tells of the last answer
            await asyncio.sleep(0.1)
    for connection in opened:
        connection.close()
    return run.result(_cpu_s() - cpu, time.perf_counter() - began)


def _request(path: str, host: str, body: str) -> bytes:
    content = body.encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer bench\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode() + content


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run what the first argument describes."""
    import uvloop  # noqa: PLC0415 - the generator is to be as fast as can be

    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run = run_arrivals if "per_second" in options else run_load
    print(json.dumps(asdict(uvloop.run(run(**options)))))


if __name__ == "__main__":
    main()
