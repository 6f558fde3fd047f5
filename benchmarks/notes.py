"""The introduction of the report: the method, the services and the limits of this machine."""

import os
import platform
from collections.abc import Iterator

from benchmarks.harness import CORES, GROQ_CORE, LOAD_CORE, SERVICE_CORE
from benchmarks.load import BUSY_SHARE

PEERS = """\
- **Floor**: bare aiohttp, one raw connection to Redis and a plain POST to Groq. It has no
  validation, no error handling and no limits. It runs with Python's default garbage collector (GC)
  settings and with groqchat's.
- **Naive service**: FastAPI, one `redis.asyncio` call after another, and the Groq SDK's `create()`.
- **Plain proxy**: aiohttp that forwards a stream and stores nothing."""

CONDITIONS = """\
Each service runs on one core, with the same Redis server and the same mock Groq server. The floor
and the raw Redis connection are not the least possible cost: the floor uses the HTTP client of
aiohttp, and Redis is idle while the process handles its replies."""

SHARED_CORE = """\
**Note:** the service shared its core with the load generator or the mock Groq server. This limited
the throughput."""


def introduction(*, runs: int, workers: int, generator_cpu_share: float) -> Iterator[str]:
    """Yield paragraphs in Markdown."""
    yield (
        "`make bench` wrote this report. [performance.md](../../docs/performance.md) explains the\n"
        "method."
    )
    yield (
        f"Python {platform.python_version()}, {os.cpu_count()} cores. The figures of turns, saved\n"
        f"messages and concurrent streams are medians of {runs} runs, in which the services run\n"
        "in turn. Ratios of turns and of streams are medians of the ratios within each run, not\n"
        "ratios of the medians. If a row names no other load, 64 connections send turns to\n"
        "sessions of 20 messages."
    )
    yield PEERS
    yield CONDITIONS
    if generator_cpu_share >= BUSY_SHARE:
        yield (
            f"**Note:** the load generator used {generator_cpu_share:.0%} of its core. This may\n"
            "have limited the throughput."
        )
    if SERVICE_CORE in (LOAD_CORE, GROQ_CORE):
        yield SHARED_CORE
    yield (
        f"The measurements with 1 worker and with {workers} workers use all cores. A server that\n"
        "returns a constant answer at once, without parsing the request body, replaces the mock\n"
        "Groq server."
    )
    if len(CORES) < workers + 3:
        yield (
            f"**Note:** the {workers} workers share {len(CORES)} cores with this server, Redis\n"
            "and the load generator. The throughput of several workers is a lower bound."
        )
