"""A rolling restart of two replicas behind nginx, with the documented configuration."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import aiohttp

from tests.support.api import BASE
from tests.support.nginx import HOST, TOKEN, free_port, nginx
from tests.support.redis_servers import RedisServer
from tests.support.service import Service

CLIENTS = 40
# Streams are longer than the second in which a replica that stops answers new requests.
GROQ = "offline:?chunk_ms=100&chunks=14"


async def send_requests(url: str, outcomes: Counter[str], stop: asyncio.Event) -> None:
    """Send plain and streamed turns, and count their results."""
    headers = {"Authorization": TOKEN, "Host": HOST}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        while not stop.is_set():
            for streams in (True, False, False, False):
                body = {"message": "Hello", "stream": streams}
                async with session.post(f"{BASE}/chat", json=body) as response:
                    text = await response.text()
                    outcomes[outcome(response.status, text, streams=streams)] += 1


def outcome(status: int, text: str, *, streams: bool) -> str:
    if status != 200:
        return f"{status} {text[:200]}"
    is_complete = "event: done" in text if streams else "message_id" in json.loads(text)
    return "complete" if is_complete else text[-200:]


def stop_replica(replica: Service) -> None:
    """Stop a replica with SIGTERM and wait for its end."""
    replica.__exit__(None, None, None)


def test_a_rolling_restart_behind_nginx_loses_no_request(
    directory: Path, own_redis_server: RedisServer
) -> None:
    ports = [free_port(), free_port()]

    def start(port: int) -> Service:
        return Service(
            directory,
            PORT=str(port),
            ALLOWED_HOSTS=HOST,
            REDIS_URL=own_redis_server.url(0),
            GROQ_BASE_URL=GROQ,
        ).__enter__()

    async def restart_both(url: str, replicas: list[Service]) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(send_requests(url, outcomes, stop))
            for number, port in enumerate(ports):
                await asyncio.sleep(0.5)
                await asyncio.to_thread(stop_replica, replicas[number])
                replicas[number] = await asyncio.to_thread(start, port)
            await asyncio.sleep(0.5)
            stop.set()
        return outcomes

    replicas = [start(port) for port in ports]
    try:
        with nginx(directory, ports) as url:
            outcomes = asyncio.run(restart_both(url, replicas))
    finally:
        for replica in replicas:
            stop_replica(replica)
    assert set(outcomes) == {"complete"}, outcomes
