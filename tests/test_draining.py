"""SIGTERM while clients with keep-alive connections send requests."""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api import BASE
from tests.support.raw_http import connect, post
from tests.support.service import Service

CHAT = f"{BASE}/chat"
HELLO = json.dumps({"message": "Hello"}).encode()
STREAM = json.dumps({"message": "Hello", "stream": True}).encode()
CLIENTS = 100


@pytest.fixture
def directory() -> Iterator[Path]:
    """A working directory with a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="groqchat-") as name:
        yield Path(name)


async def send_until_closed(url: str, outcomes: Counter[str], body: bytes) -> None:
    """Send requests on one connection until a response closes it."""
    async with connect(url) as one:
        while True:
            one.writer.write(post(CHAT, body))
            try:
                status, headers, _ = await one.response()
            except (asyncio.IncompleteReadError, ConnectionError):
                outcomes["cut"] += 1
                return
            outcomes[f"{status}"] += 1
            if headers.get("Connection") == "close":
                outcomes["closed"] += 1
                return


async def run_clients(service: Service) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(send_until_closed(service.url, outcomes, HELLO))
        while outcomes["200"] < 2 * CLIENTS:
            await asyncio.sleep(0.01)
        service.terminate_later()
    return outcomes


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_request_is_cut(directory: Path, workers: str) -> None:
    with Service(
        directory, "--local", "--workers", workers, GROQ_BASE_URL="offline:?latency_ms=20"
    ) as service:
        outcomes = asyncio.run(run_clients(service))
        assert service.wait() == 0
    assert outcomes["cut"] == 0
    assert outcomes["closed"] == CLIENTS
    assert set(outcomes) <= {"200", "503", "closed", "cut"}


async def connect_repeatedly(url: str, outcomes: Counter[str]) -> None:
    """Send each request on a new connection until the port is closed."""
    while True:
        try:
            async with connect(url) as one:
                one.writer.write(post(CHAT, HELLO, "Connection: close"))
                try:
                    status, _, _ = await one.response()
                except (asyncio.IncompleteReadError, ConnectionError):
                    status = 0
        except (ConnectionRefusedError, ConnectionResetError):
            # The port was closed during the handshake: the client has not sent anything.
            return
        outcomes[f"{status}"] += 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_new_connection_is_reset(directory: Path, workers: str) -> None:
    async def run(service: Service) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(connect_repeatedly(service.url, outcomes))
            while outcomes["200"] < 2 * CLIENTS:
                await asyncio.sleep(0.01)
            service.terminate_later()
        return outcomes

    with Service(directory, "--local", "--workers", workers, GROQ_BASE_URL="offline:") as service:
        outcomes = asyncio.run(run(service))
        assert service.wait() == 0
    assert set(outcomes) == {"200"}


def test_a_request_on_an_idle_connection_is_answered_during_the_drain(directory: Path) -> None:
    async def ask(service: Service) -> tuple[int, str | None]:
        async with connect(service.url) as one:
            one.writer.write(post(CHAT, HELLO))
            assert (await one.response())[0] == 200
            service.terminate_later()
            await asyncio.to_thread(service.wait_for, "is stopping")
            one.writer.write(post(CHAT, HELLO))
            status, headers, _ = await one.response()
            assert await one.read_to_end() == b""
            return status, headers.get("Connection")

    with Service(directory, "--local") as service:
        assert asyncio.run(ask(service)) == (200, "close")
        assert service.wait() == 0


def test_a_late_turn_is_rejected_while_another_one_ends(directory: Path) -> None:
    async def ask(service: Service) -> tuple[tuple[int, str, str], int]:
        async with connect(service.url) as running, connect(service.url) as late:
            running.writer.write(post(CHAT, HELLO))
            late.writer.write(post(CHAT, HELLO)[:-1])
            service.terminate_later()
            await asyncio.to_thread(service.wait_for, "waiting for 1 ")
            late.writer.write(HELLO[-1:])
            error = await late.error()
            return error, (await running.response())[0]

    with Service(directory, "--local", GROQ_BASE_URL="offline:?latency_ms=2500") as service:
        assert asyncio.run(ask(service)) == ((503, "shutting_down", "close"), 200)
        assert service.wait() == 0


def test_idle_connections_do_not_delay_the_end(directory: Path) -> None:
    async def stop(service: Service) -> bytes:
        async with connect(service.url) as one:
            service.terminate_later()
            return await one.read_to_end()

    with Service(directory, "--local") as service:
        assert asyncio.run(stop(service)) == b""
        assert service.wait() == 0


@pytest.mark.parametrize("sent", [40, -1], ids=["head", "body"])
def test_a_request_that_does_not_arrive_in_time_is_rejected(directory: Path, sent: int) -> None:
    async def ask(service: Service) -> tuple[int, str, str]:
        async with connect(service.url) as one:
            one.writer.write(post(CHAT, HELLO)[:sent])
            await asyncio.sleep(0.1)
            service.terminate_later()
            return await one.error()

    with Service(directory, "--local") as service:
        assert asyncio.run(ask(service)) == (503, "shutting_down", "close")
        assert service.wait() == 0
