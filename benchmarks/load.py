"""The load generator: HTTP/1.1 keep-alive connections without an HTTP library.

It runs as a separate process on its own core: `python -m benchmarks.load FILE`. FILE contains the
arguments of `run_closed_loop` or `run_open_loop` as JSON. The process prints a `LoadResult` in
JSON.
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

# Responses in this first part of a run are not measured, because caches and pools fill first.
WARM_UP_SHARE = 0.25
TIMEOUT_S = 30.0
# Above this share of its core, the load generator may limit the throughput.
BUSY_SHARE = 0.9
NOT_SAVED = b'"history_saved":false'


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """The measurements of one run; latencies in milliseconds.

    `peak` is the highest number of concurrent requests of an open loop. `errors` also counts the
    warm-up.
    """

    responses: int
    errors: int
    per_second: float
    p50_ms: float
    p99_ms: float
    generator_cpu_share: float
    peak: int


class _Connection(asyncio.Protocol):
    """Sends one request at a time and reads its response."""

    def __init__(self, recorder: "_Recorder") -> None:
        self._recorder = recorder
        self._buffer = b""
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The transports of uvloop do not inherit from asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, due: float | None = None) -> None:
        """Send a request; its latency counts from `due`, or from now."""
        assert self._transport is not None
        self._sent = due or time.perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    @abstractmethod
    def response_received(self) -> None: ...

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        start = head.find(b"content-length: ") + 16
        end = head.find(b"\r\n", start)
        length = int(head[start : end if end >= 0 else None])
        if len(self._buffer) < head_end + 4 + length:
            return
        # An answer that is not stored in Redis counts as an error.
        is_ok = self._buffer.startswith(b"HTTP/1.1 200") and NOT_SAVED not in self._buffer
        self._buffer = b""
        self._recorder.record(time.perf_counter() - self._sent, is_ok=is_ok)
        self.response_received()


class _ClosedLoopConnection(_Connection):
    """Sends the next request after each response, until the run ends."""

    def __init__(self, requests: Iterator[bytes], recorder: "_Recorder") -> None:
        super().__init__(recorder)
        self._requests = requests
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.response_received()

    def response_received(self) -> None:
        if self._recorder.is_over:
            self.close()
        else:
            self.send(next(self._requests))

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done.done():
            self._recorder.errors += not self._recorder.is_over
            self.done.set_result(None)


class _OpenLoopConnection(_Connection):
    """Returns to the idle connections after each response."""

    def __init__(self, recorder: "_Recorder", idle: "list[_OpenLoopConnection]") -> None:
        super().__init__(recorder)
        self._idle = idle

    def response_received(self) -> None:
        self._idle.append(self)


class _Recorder:
    """Records the responses of all connections between the warm-up and the end of a run."""

    def __init__(self, seconds: float) -> None:
        begin = time.perf_counter()
        self._warm_up_end = begin + seconds * WARM_UP_SHARE
        self._end = begin + seconds
        self._seconds = seconds * (1 - WARM_UP_SHARE)
        self._latencies: list[float] = []
        self.errors = 0
        self.peak = 0

    @property
    def is_over(self) -> bool:
        return time.perf_counter() >= self._end

    def record(self, latency_s: float, *, is_ok: bool) -> None:
        if is_ok and self._warm_up_end <= time.perf_counter() < self._end:
            self._latencies.append(latency_s)
        self.errors += not is_ok

    def result(self, *, cpu_s: float, wall_s: float) -> LoadResult:
        latencies = sorted(self._latencies) or [0.0]
        return LoadResult(
            responses=len(self._latencies),
            errors=self.errors,
            per_second=len(self._latencies) / self._seconds,
            p50_ms=latencies[len(latencies) // 2] * 1000,
            p99_ms=latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)] * 1000,
            generator_cpu_share=cpu_s / wall_s,
            peak=self.peak,
        )


async def run_closed_loop(
    url: str, *, connections: int, seconds: float, bodies: list[str]
) -> LoadResult:
    """Send POST requests on a fixed number of connections, each with one request at a time."""
    parts = urlsplit(url)
    requests = itertools.cycle([_request(parts.path, parts.netloc, body) for body in bodies])
    recorder = _Recorder(seconds)
    loop = asyncio.get_running_loop()
    begin, begin_cpu_s = time.perf_counter(), _cpu_s()
    opened = [
        await loop.create_connection(
            lambda: _ClosedLoopConnection(requests, recorder), parts.hostname, parts.port
        )
        for _ in range(connections)
    ]
    async with asyncio.timeout(seconds + TIMEOUT_S):
        await asyncio.gather(*(connection.done for _, connection in opened))
    return recorder.result(cpu_s=_cpu_s() - begin_cpu_s, wall_s=time.perf_counter() - begin)


async def run_open_loop(
    url: str, *, per_second: float, seconds: float, bodies: list[str]
) -> LoadResult:
    """Send POST requests at a constant rate, whether or not earlier requests are finished.

    A request uses an idle connection, or opens a connection if none is idle. Its latency counts
    from the time when it is due.
    """
    parts = urlsplit(url)
    recorder = _Recorder(seconds)
    loop = asyncio.get_running_loop()
    idle: list[_OpenLoopConnection] = []
    opened: list[_OpenLoopConnection] = []
    begin, begin_cpu_s = time.perf_counter(), _cpu_s()
    for number in range(int(per_second * seconds)):
        due = begin + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        request = _request(parts.path, parts.netloc, bodies[number % len(bodies)])
        if idle:
            idle.pop().send(request, due)
            recorder.peak = max(recorder.peak, len(opened) - len(idle))
            continue
        _, connection = await loop.create_connection(
            lambda: _OpenLoopConnection(recorder, idle), parts.hostname, parts.port
        )
        opened.append(connection)
        connection.send(request, due)
        recorder.peak = max(recorder.peak, len(opened) - len(idle))
    async with asyncio.timeout(TIMEOUT_S):
        while len(idle) < len(opened):  # noqa: ASYNC110 - no event reports the last response
            await asyncio.sleep(0.1)
    for connection in opened:
        connection.close()
    return recorder.result(cpu_s=_cpu_s() - begin_cpu_s, wall_s=time.perf_counter() - begin)


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
    """Run the load that the file in the first argument describes."""
    import uvloop  # noqa: PLC0415 - only the generator process needs uvloop

    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run = run_open_loop if "per_second" in options else run_closed_loop
    print(json.dumps(asdict(uvloop.run(run(**options)))))


if __name__ == "__main__":
    main()
