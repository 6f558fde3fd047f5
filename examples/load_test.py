"""Measure the latency of a local service: a bounded number of requests at a bounded concurrency.

Run `make run` first. The program refuses addresses of other machines.
"""

import asyncio
import os
import statistics
import time
from urllib.parse import urlsplit

import aiohttp

URL = os.environ.get("GROQCHAT_URL", "http://localhost:5000")
REQUESTS = int(os.environ.get("REQUESTS", "500"))
CONCURRENCY = 20
TIMEOUT_S = 60.0


async def timed_request(session: aiohttp.ClientSession, number: int) -> float:
    """Send one message and return the time until its answer in milliseconds."""
    body = {"message": "Hello", "session_id": f"load-{number % CONCURRENCY}"}
    began = time.perf_counter()
    async with session.post(f"{URL}/api/groq-chat/chat", json=body) as response:
        await response.read()
        response.raise_for_status()
    return (time.perf_counter() - began) * 1000


async def main() -> None:
    """Send all requests and print throughput and latency."""
    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()
        times = await asyncio.gather(*(timed_request(session, each) for each in range(REQUESTS)))
        seconds = time.perf_counter() - began
    print(f"{REQUESTS} answers, {REQUESTS / seconds:.0f} per second")
    print(f"median {statistics.median(times):.1f} ms, maximum {max(times):.1f} ms")


if urlsplit(URL).hostname not in {"localhost", "127.0.0.1", "::1"}:
    raise SystemExit("This load test addresses only this machine.")
asyncio.run(main())
