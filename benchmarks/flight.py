"""Thousands of turns in flight in one process, with an upstream as slow as a real one."""

import json
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks import stage

UPSTREAM_MS = 5000
PER_SECOND = 1000
SECONDS = 16
PROBE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """What was measured with `in_flight` turns under way."""

    in_flight: int
    errors: int
    kib_per_turn: float
    added_p50_ms: float
    added_p99_ms: float
    lag_p99_ms: float
    generator_cpu_share: float


def measure(socket: Path) -> Flight:
    """Measure groqchat once; the upstream runs with its latency."""
    peer = stage.peers(socket)[0]
    bodies = [
        json.dumps({"message": "x" * 90, "session_id": f"flight-{number}"})
        for number in range(PER_SECOND)
    ]
    with stage.upstream(latency_ms=UPSTREAM_MS), stage.service(peer) as running:
        before = _resident_kib(running.pid)
        watch = _Watch(running.pid)
        watch.start()
        result = stage.load(bodies=bodies, per_second=PER_SECOND, seconds=SECONDS)
        watch.stop()
    return Flight(
        in_flight=result.peak,
        errors=result.errors,
        kib_per_turn=(watch.peak_kib - before) / result.peak,
        added_p50_ms=result.p50_ms - UPSTREAM_MS,
        added_p99_ms=result.p99_ms - UPSTREAM_MS,
        lag_p99_ms=watch.lag_p99_ms,
        generator_cpu_share=result.generator_cpu_share,
    )


class _Watch(threading.Thread):
    """Looks at the memory, and at how long the event loop lets a probe wait."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._over = threading.Event()
        self._lags: list[float] = []
        self.peak_kib = 0

    @property
    def lag_p99_ms(self) -> float:
        return sorted(self._lags)[len(self._lags) * 99 // 100]

    def run(self) -> None:
        url = f"http://127.0.0.1:{stage.SERVICE_PORT}/healthz"
        while not self._over.wait(PROBE_S):
            began = time.perf_counter()
            urllib.request.urlopen(url, timeout=30).close()
            self._lags.append((time.perf_counter() - began) * 1000)
            self.peak_kib = max(self.peak_kib, _resident_kib(self._pid))

    def stop(self) -> None:
        self._over.set()
        self.join()


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])
