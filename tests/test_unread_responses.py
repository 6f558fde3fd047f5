"""Clients that do not read the responses to their requests."""

import asyncio
import gc
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests
from aiohttp import ClientSession, web

from groqchat.runtime.responses import LargeBody
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.garbage import no_gc
from tests.support.raw_http import post
from tests.support.service import GROQCHAT, Service
from tests.support.streams import history

CHAT = f"{BASE}/chat"
HELLO = json.dumps({"message": "Hello", "session_id": "s"}).encode()
# A page of 1.7 MB without compression: more than the kernel buffers for a client.
DOCS = b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLIENTS = 100
MIB = 1_048_576


@contextmanager
def unread(port: int, requests_sent: bytes) -> Iterator[socket.socket]:
    """A client that sends requests and reads nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(requests_sent)
        client.settimeout(0)
        yield client


async def load_docs(api: ClientSession) -> tuple[int, bytes]:
    """Return the port of the service, and the page that it renders at the first request."""
    async with api.get("/docs", headers={"Accept-Encoding": "identity"}) as response:
        assert response.url.port is not None
        return response.url.port, await response.read()


def port_of(service: Service) -> int:
    return int(service.url.rpartition(":")[2])


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


async def is_disconnected(client: socket.socket) -> bool:
    """Send one request after another, more than the service answers, for up to ten seconds."""
    for _ in range(100):
        try:
            await asyncio.get_running_loop().sock_sendall(client, DOCS)
        except ConnectionError:
            return True
        await asyncio.sleep(0.1)
    return False


async def read_statuses(client: socket.socket, count: int) -> list[bytes]:
    """Return the statuses of the next responses."""
    received = b""
    async with asyncio.timeout(20):
        while received.count(b"HTTP/1.1 ") < count:
            data = await asyncio.get_running_loop().sock_recv(client, 262_144)
            assert data, "the connection was closed"
            received += data
    return [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]


async def test_the_next_request_starts_when_the_response_has_been_read(serve: Serve) -> None:
    api = await serve()
    port, _ = await load_docs(api)
    with unread(port, DOCS + post(CHAT, HELLO)) as client:
        await asyncio.sleep(0.5)
        assert await history(api) == []
        assert await read_statuses(client, 2) == [b"200", b"200"]
        assert len(await history(api)) == 2


async def test_a_client_that_stops_reading_is_disconnected(serve: Serve) -> None:
    api = await serve(stream_write_timeout_s=0.2)
    port, _ = await load_docs(api)
    with unread(port, DOCS) as client:
        # Its further requests are not progress.
        assert await is_disconnected(client)


async def test_a_client_that_reads_slowly_gets_the_whole_response(serve: Serve) -> None:
    api = await serve(stream_write_timeout_s=0.2)
    port, page = await load_docs(api)
    with unread(port, DOCS) as client:
        received = b""
        begin = time.monotonic()
        while not received.endswith(page[-1000:]):
            data = await asyncio.get_running_loop().sock_recv(client, len(page) // 40)
            assert data, "the connection was closed"
            received += data
            await asyncio.sleep(0.008)
    # Longer than the timeout for a client that reads nothing.
    assert time.monotonic() - begin > 3
    assert received.endswith(page)


@pytest.mark.parametrize("count", [1, 2], ids=["while it is sent", "before the next request"])
async def test_clients_that_leave_an_unread_response_leave_no_garbage(
    serve: Serve, count: int
) -> None:
    api = await serve()
    port, _ = await load_docs(api)
    with no_gc():
        for _ in range(5):
            with unread(port, DOCS * count):
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.2)
        left = [each for each in gc.get_objects() if isinstance(each, (LargeBody, web.Request))]
        # The garbage of aiohttp's connections does not refer to bodies.
        assert left == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which Linux has")
def test_unread_responses_share_their_memory(tmp_path: Path) -> None:
    with (
        Service(tmp_path, REDIS_URL="memory:", GROQ_BASE_URL="offline:") as service,
        ExitStack() as stack,
    ):
        requests.get(f"{service.url}/docs", timeout=20)
        before = resident_bytes(service.pid)
        for _ in range(CLIENTS):
            stack.enter_context(unread(port_of(service), DOCS * 2))
        for _ in range(5):
            requests.get(f"{service.url}/healthz", timeout=20)
        assert resident_bytes(service.pid) - before < 20 * MIB


def test_clients_that_do_not_read_give_way_to_new_ones(tmp_path: Path) -> None:
    program = ("sh", "-c", 'ulimit -n 256 && exec "$0" "$@"', *GROQCHAT)
    with (
        Service(
            tmp_path, program=program, REDIS_URL="memory:", GROQ_BASE_URL="offline:"
        ) as service,
        ExitStack() as stack,
    ):
        requests.get(f"{service.url}/docs", timeout=20)
        for _ in range(200):
            stack.enter_context(unread(port_of(service), DOCS))
        begin = time.monotonic()
        while requests.get(f"{service.url}/healthz", timeout=10).status_code != 200:
            assert time.monotonic() - begin < 5
            time.sleep(0.1)
        for _ in range(5):
            response = requests.post(f"{service.url}{CHAT}", json={"message": "Hello"}, timeout=10)
            assert response.status_code == 200
