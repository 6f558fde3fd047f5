"""Thousands of concurrent turns in one process; each answer of the mock Groq server takes 5 s."""

import json
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness

GROQ_LATENCY_MS = 5000
TURNS_PER_SECOND = 1000
SECONDS = 16
PROBE_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyFigures:
    """The measurements of one run; `concurrent_turns` is the peak.

    Added latency is the latency of a turn without the latency of the mock Groq server. Event loop
    delay is the latency of `GET /healthz`, which waits only for the event loop.
    """

    concurrent_turns: int
    errors: int
    kib_per_turn: float
    added_p50_ms: float
    added_p99_ms: float
    loop_delay_p99_ms: float
    generator_cpu_share: float


def measure(socket: Path) -> ConcurrencyFigures:
    """Measure groqchat once."""
    bodies = [
        json.dumps({"message": "x" * 90, "session_id": f"session-{number}"})
        for number in range(TURNS_PER_SECOND)
    ]
    with (
        harness.mock_groq(latency_ms=GROQ_LATENCY_MS),
        harness.service(harness.groqchat(socket)) as process,
    ):
        idle_kib = _resident_kib(process.pid)
        monitor = _Monitor(process.pid)
        monitor.start()
        result = harness.run_load_generator(
            bodies=bodies, per_second=TURNS_PER_SECOND, seconds=SECONDS
        )
        monitor.stop()
    return ConcurrencyFigures(
        concurrent_turns=result.peak,
        errors=result.errors,
        kib_per_turn=(monitor.peak_kib - idle_kib) / result.peak,
        added_p50_ms=result.p50_ms - GROQ_LATENCY_MS,
        added_p99_ms=result.p99_ms - GROQ_LATENCY_MS,
        loop_delay_p99_ms=monitor.loop_delay_p99_ms,
        generator_cpu_share=result.generator_cpu_share,
    )


class _Monitor(threading.Thread):
    """Measures the memory of the service, and the latency of `GET /healthz`."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._stopped = threading.Event()
        self._delays_ms: list[float] = []
        self.peak_kib = 0

    @property
    def loop_delay_p99_ms(self) -> float:
        return sorted(self._delays_ms)[len(self._delays_ms) * 99 // 100]

    def run(self) -> None:
        url = f"http://127.0.0.1:{harness.SERVICE_PORT}/healthz"
        while not self._stopped.wait(PROBE_INTERVAL_S):
            begin = time.perf_counter()
            urllib.request.urlopen(url, timeout=30).close()
            self._delays_ms.append((time.perf_counter() - begin) * 1000)
            self.peak_kib = max(self.peak_kib, _resident_kib(self._pid))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])
