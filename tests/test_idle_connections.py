"""A connection on which data arrived while it was idle is not used again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest
from yarl import URL

from groqchat.services.groq.aiohttp_internals import RequestTemplate
from groqchat.services.groq.http_session import open_http_session
from tests.test_aiohttp_internals import raw_response


class DoubleResponder:
    """A server that sends a second response, once, after its first response."""

    def __init__(self) -> None:
        self.connections = 0
        self.has_sent_twice = asyncio.Event()
        self.url = URL()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            for number in range(5):
                await reader.readuntil(b"\r\n\r\n{}")
                writer.write(raw_response(b"%d" % number, "Content-Length: 1"))
                if not self.has_sent_twice.is_set():
                    await asyncio.sleep(0.05)
                    writer.write(raw_response(b"stale", "Content-Length: 5"))
                    self.has_sent_twice.set()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[DoubleResponder]:
    """The server, which accepts connections on 127.0.0.1."""
    responder = DoubleResponder()
    async with await asyncio.start_server(responder.serve, "127.0.0.1", 0) as listener:
        responder.url = URL(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/")
        yield responder


async def post(session: aiohttp.ClientSession, url: URL, *, uses_template: bool) -> bytes:
    if uses_template:
        request = RequestTemplate(session, "POST", url, connect_timeout_s=2)
        return (await request.send(b"{}")).content
    async with session.post(url, data=b"{}") as response:
        return await response.read()


@pytest.mark.parametrize("uses_template", [False, True], ids=["session", "template"])
async def test_an_unexpected_response_closes_its_idle_connection(
    server: DoubleResponder, *, uses_template: bool
) -> None:
    async with open_http_session(10) as session:
        received = [await post(session, server.url, uses_template=uses_template)]
        await server.has_sent_twice.wait()
        await asyncio.sleep(0.1)
        received += [await post(session, server.url, uses_template=uses_template) for _ in range(3)]

    assert received == [b"0", b"0", b"1", b"2"]
    assert server.connections == 2


async def test_a_server_that_responds_before_a_request_receives_no_retries() -> None:
    connections = 0

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        headers = ("Connection: close", "Content-Length: 0")
        writer.write(raw_response(b"", *headers, status="503 Overloaded"))
        writer.close()

    async with (
        await asyncio.start_server(respond, "127.0.0.1", 0) as server,
        open_http_session(10) as session,
    ):
        url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        with suppress(aiohttp.ClientError, OSError):
            await post(session, url, uses_template=True)
    assert connections == 1
