"""SIGTERM while clients read responses whose heads were sent before."""

import asyncio
import json
import re
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.api import BASE
from tests.support.raw_http import RawConnection, connect, post
from tests.support.service import Service

CHAT = f"{BASE}/chat"
HELLO = json.dumps({"message": "Hello"}).encode()
STREAM = json.dumps({"message": "Hello", "stream": True}).encode()
END = b"0\r\n\r\n"
CLIENTS = 20
# Of the page of 539 KB, most waits in the service.
SMALL_BUFFER_BYTES = 4096
# Streams of a second: they end during the drain.
SLOW = "offline:?chunk_ms=50&chunks=20"


def read_stream(client: socket.socket) -> bytes:
    """Return a stream without waiting for the end of its connection."""
    received = b""
    while not received.endswith(END):
        data = client.recv(65536)
        assert data, received
        received += data
    return received


def start_streams(stack: ExitStack, service: Service) -> list[socket.socket]:
    """Start streams and wait for their heads."""
    address = urlsplit(service.url)
    clients = [
        stack.enter_context(socket.create_connection((address.hostname, address.port)))
        for _ in range(CLIENTS)
    ]
    for client in clients:
        client.settimeout(20)
        client.sendall(post(CHAT, STREAM))
    for client in clients:
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    return clients


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="only Linux can send both together")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_end_of_a_stream_and_of_its_connection_arrive_together(
    directory: Path, workers: str
) -> None:
    with (
        Service(directory, "--local", "--workers", workers, GROQ_BASE_URL=SLOW) as service,
        ExitStack() as stack,
    ):
        clients = start_streams(stack, service)
        service.terminate_later()
        for client in clients:
            assert b"event: done" in read_stream(client)
            # A proxy that reads the end of the response must not use the connection again.
            client.settimeout(0)
            assert client.recv(1) == b""
        assert service.wait() == 0


async def stream_of(one: RawConnection) -> bytes:
    """Return the next response, a stream, with its head."""
    async with asyncio.timeout(20):
        return await one.reader.readuntil(END)


async def ends_now(one: RawConnection) -> bool:
    """Return whether a connection ends before the second for which it could be idle."""
    try:
        async with asyncio.timeout(0.5):
            return await one.reader.read() == b""
    except TimeoutError:
        return False


def test_a_request_that_arrived_during_a_stream_is_answered(directory: Path) -> None:
    async def ask(service: Service) -> tuple[bool, tuple[int, str, str]]:
        async with connect(service.url) as one:
            one.writer.write(post(CHAT, STREAM))
            head = await one.reader.readuntil(b"\r\n\r\n")
            assert b"Connection: close" not in head
            service.terminate_later()
            await asyncio.to_thread(service.wait_for, "waiting for 1 ")
            one.writer.write(post(CHAT, HELLO))
            is_complete = b"event: done" in await stream_of(one)
            error = await one.error()
            assert await one.read_to_end() == b""
            return is_complete, error

    with Service(directory, "--local", GROQ_BASE_URL="offline:?chunk_ms=100&chunks=30") as service:
        assert asyncio.run(ask(service)) == (True, (503, "shutting_down", "close"))
        assert service.wait() == 0


def test_a_follower_of_another_worker_resumes_at_once(directory: Path) -> None:
    async def follow(first: Service, second: Service) -> tuple[str, bytes]:
        async with connect(second.url) as client, connect(first.url) as follower:
            client.writer.write(post(CHAT, STREAM))
            head = await client.reader.readuntil(b"\r\n\r\n")
            turn_id = re.findall(rb"X-Turn-ID: (\w+)", head)[0].decode()
            events = f"GET {CHAT}/{turn_id}/events HTTP/1.1"
            await follower.send(events, "Host: localhost")
            await follower.reader.readuntil(b"event: start")
            first.terminate_later()
            interrupted = await stream_of(follower)
            assert b"shutting_down" in interrupted
            assert await ends_now(follower)
            last = re.findall(rb"id: (\d+)", interrupted)[-1].decode()
            async with connect(second.url) as resumed:
                await resumed.send(events, "Host: localhost", f"Last-Event-ID: {last}")
                return last, await stream_of(resumed)

    shared = {"REDIS_URL": f"unix://{directory}/.data/redis/redis.sock", "SHUTDOWN_GRACE_S": "2"}
    slow = "offline:?chunk_ms=50&chunks=60"
    with (
        Service(directory, "--local", GROQ_BASE_URL=slow) as second,
        Service(directory, GROQ_BASE_URL="offline:", **shared) as first,
    ):
        last, rest = asyncio.run(follow(first, second))
    ids = [int(number) for number in re.findall(rb"id: (\d+)", rest)]
    assert ids[0] == int(last) + 1
    assert b"event: done" in rest


def test_the_connection_of_a_page_that_a_slow_client_reads_is_closed_after_it(
    directory: Path,
) -> None:
    async def read(service: Service) -> tuple[bool, bool]:
        async with connect(service.url) as one:
            one.reader._limit = SMALL_BUFFER_BYTES  # type: ignore[attr-defined] # no public option
            await one.send("GET /docs HTTP/1.1", "Host: localhost")
            head = await one.reader.readuntil(b"\r\n\r\n")
            service.terminate_later()
            await asyncio.to_thread(service.wait_for, "is stopping")
            (length,) = re.findall(rb"Content-Length: (\d+)", head)
            await one.reader.readexactly(int(length))
            return b"Connection: close" in head, await ends_now(one)

    with Service(directory, "--local") as service:
        assert asyncio.run(read(service)) == (False, True)
        assert service.wait() == 0
