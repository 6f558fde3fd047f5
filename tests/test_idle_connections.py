"""What came on a connection that nobody asked for is taken for no reply, whoever asks next."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest
from yarl import URL

from groqchat.services.groq.aiohttp_internals import RequestTemplate
from groqchat.services.groq.client import open_http_session
from tests.test_aiohttp_internals import reply_of


class Pushing:
    """A server that sends a second reply to the first request of each connection."""

    def __init__(self) -> None:
        self.connections = 0
        self.has_pushed = asyncio.Event()
        self.url = URL()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for number in range(5):
                await reader.readuntil(b"\r\n\r\n{}")
                writer.write(reply_of(b"%d" % number, "Content-Length: 1"))
                if not self.has_pushed.is_set():
                    await asyncio.sleep(0.05)
                    writer.write(reply_of(b"stale", "Content-Length: 5"))
                    self.has_pushed.set()
        writer.close()


@pytest.fixture
async def pushing() -> AsyncIterator[Pushing]:
    found = Pushing()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        found.url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        yield found


async def ask(session: aiohttp.ClientSession, url: URL, *, prepared: bool) -> bytes:
    if prepared:
        request = RequestTemplate(session, "POST", url, connect_timeout_s=2)
        return (await request.send(b"{}")).content
    async with session.post(url, data=b"{}") as response:
        return await response.read()


@pytest.mark.parametrize("prepared", [False, True], ids=["stream or relay", "prepared"])
async def test_a_reply_that_nobody_asked_for_ends_its_idle_connection(
    pushing: Pushing, *, prepared: bool
) -> None:
    async with open_http_session(10) as session:
        found = [await ask(session, pushing.url, prepared=prepared)]
        await pushing.has_pushed.wait()
        await asyncio.sleep(0.1)
        found += [await ask(session, pushing.url, prepared=prepared) for _ in range(3)]

    assert found == [b"0", b"0", b"1", b"2"]
    assert pushing.connections == 2


async def test_a_server_that_speaks_first_is_not_asked_again_and_again() -> None:
    connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        headers = ("Connection: close", "Content-Length: 0")
        writer.write(reply_of(b"", *headers, status="503 Overloaded"))
        writer.close()

    async with (
        await asyncio.start_server(refuse, "127.0.0.1", 0) as server,
        open_http_session(10) as session,
    ):
        url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        with suppress(aiohttp.ClientError, OSError):
            await ask(session, url, prepared=True)
    assert connections == 1
