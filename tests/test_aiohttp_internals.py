"""Requests made ready once: what aiohttp has underneath is still there, and means the same."""

import asyncio
import gzip
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
import trustme
from yarl import URL

from groqchat.services.groq import aiohttp_internals
from groqchat.services.groq.aiohttp_internals import RequestTemplate


def reply_of(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return a response with just these headers."""
    return (
        "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, "")).encode() + content
    )


OK = reply_of(b"ok", "Content-Length: 2")


class Upstream:
    """A server that answers each request with the next of its replies, and keeps what it was sent.

    A connection ends where a reply is None, or is one that only the end of the connection ends.
    """

    def __init__(self, *replies: bytes | None) -> None:
        self.replies = list(replies)
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.url = URL()

    @asynccontextmanager
    async def serving(self, context: ssl.SSLContext | None = None) -> AsyncIterator["Upstream"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        async with server:
            scheme = "https" if context else "http"
            port = server.sockets[0].getsockname()[1]
            self.url = URL(f"{scheme}://127.0.0.1:{port}/v1/answers?a=b%20c")
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while self.replies:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = re.search(rb"content-length: (\d+)", head.lower())
            self.heads.append(head)
            self.bodies.append(await reader.readexactly(int(length[1]) if length else 0))
            reply = self.replies.pop(0)
            if reply is None:
                break
            writer.write(reply)
            if b"connection: close" in reply.lower():
                break
        writer.close()


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return those of a server on this machine and of a client that trusts it."""
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return server_side, trusting


def prepare(
    session: aiohttp.ClientSession, upstream: Upstream, method: str = "POST"
) -> RequestTemplate:
    return RequestTemplate(session, method, upstream.url, connect_timeout_s=2)


async def test_a_body_goes_out_with_the_head_that_the_session_itself_would_send() -> None:
    headers = {"Authorization": "Bearer käy", "X-Several": "1", "Content-Type": "application/json"}
    async with Upstream(OK, OK).serving() as upstream, aiohttp.ClientSession() as session:
        session.headers.update(headers)
        session.headers.add("X-Several", "2")
        async with session.post(upstream.url, data=b'{"a":1}') as response:
            await response.read()
        reply = await prepare(session, upstream).send(b'{"a":1}')

    assert (reply.status, reply.content) == (200, b"ok")
    assert upstream.bodies == [b'{"a":1}'] * 2
    theirs, ours = ([*map(bytes.lower, head.split(b"\r\n"))] for head in upstream.heads)
    assert theirs[0] == ours[0] == b"post /v1/answers?a=b%20c http/1.1"
    assert sorted(ours) == sorted(theirs)


async def test_a_request_without_a_body_has_no_length() -> None:
    async with Upstream(OK).serving() as upstream, aiohttp.ClientSession() as session:
        reply = await prepare(session, upstream, "GET").send()

    assert reply.content == b"ok"
    assert upstream.heads[0].startswith(b"GET /v1/answers?a=b%20c HTTP/1.1\r\n")
    assert b"content-length" not in upstream.heads[0].lower()


PACKED = gzip.compress(b"unpacked")
CHUNKS = b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
EARLY_HINTS = reply_of(b"", "Link: </a>", status="103 Early Hints")
CONTINUE = reply_of(b"", status="100 Continue") + reply_of(b"", status="102 Processing")


@pytest.mark.parametrize(
    ("reply", "status", "content"),
    [
        (reply_of(CHUNKS, "Transfer-Encoding: chunked"), 200, b"abc"),
        (
            reply_of(PACKED, "Content-Encoding: gzip", f"Content-Length: {len(PACKED)}"),
            200,
            b"unpacked",
        ),
        (reply_of(b"to the end", "Connection: close"), 200, b"to the end"),
        (EARLY_HINTS + OK, 200, b"ok"),
        (CONTINUE + OK, 200, b"ok"),
        (reply_of(b"", status="204 No Content"), 204, b""),
        (reply_of(b"", "Location: /b", "Content-Length: 0", status="307 Away"), 307, b""),
        (reply_of(b"{}", "Content-Length: 2", status="429 Slow down"), 429, b"{}"),
        (reply_of(b"", "Connection: close, upgrade", "Upgrade: h2c", status="101 On"), 101, b""),
    ],
    ids=[
        *("chunks", "gzip", "to the end", "hints", "informational"),
        *("empty", "away", "refused", "another protocol"),
    ],
)
async def test_a_reply_comes_back_whole_whatever_it_is(
    reply: bytes, status: int, content: bytes
) -> None:
    async with Upstream(reply, OK).serving() as upstream, aiohttp.ClientSession() as session:
        request = prepare(session, upstream)
        first = await request.send(b"{}")
        second = await request.send(b"{}")

    assert (first.status, first.content) == (status, content)
    assert (second.status, second.content) == (200, b"ok")
    assert upstream.connections == 1 + (b"close" in reply)


async def test_headers_come_back_as_they_came() -> None:
    headers = ("Retry-After: 3", "X-A: b", "X-A: c", "Content-Length: 0")
    reply = reply_of(b"", *headers, status="429 Slow down")
    async with Upstream(reply).serving() as upstream, aiohttp.ClientSession() as session:
        found = await prepare(session, upstream).send(b"{}")

    assert found.headers == (
        (b"Retry-After", b"3"),
        (b"X-A", b"b"),
        (b"X-A", b"c"),
        (b"Content-Length", b"0"),
    )


@pytest.mark.parametrize(
    "reply",
    [
        None,
        reply_of(b"half", "Connection: close", "Content-Length: 9"),
        reply_of(b"none", "Connection: close", "Content-Encoding: gzip", "Content-Length: 4"),
        reply_of(b"zz\r\n", "Connection: close", "Transfer-Encoding: chunked"),
        b"SSH-2.0-OpenSSH connection: close\r\n\r\n",
    ],
    ids=["none", "half", "not gzip", "not chunks", "not HTTP"],
)
async def test_what_is_no_whole_reply_is_an_error_and_ends_its_connection(
    reply: bytes | None,
) -> None:
    async with Upstream(reply, OK).serving() as upstream, aiohttp.ClientSession() as session:
        request = prepare(session, upstream)
        with pytest.raises(aiohttp.ClientError):
            await request.send(b"{}")
        assert (await request.send(b"{}")).content == b"ok"

    assert upstream.connections == 2


async def test_more_than_any_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_internals, "MAX_REPLY_BYTES", 5)
    reply = reply_of(b"123456", "Content-Length: 6")
    async with Upstream(reply).serving() as upstream, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientPayloadError, match="more than 5 bytes"):
            await prepare(session, upstream).send(b"{}")


async def test_a_caller_that_leaves_takes_its_connection_along() -> None:
    async with Upstream(b"", OK).serving() as upstream, aiohttp.ClientSession() as session:
        request = prepare(session, upstream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await request.send(b"first")
        assert (await request.send(b"second")).content == b"ok"

    assert upstream.bodies == [b"first", b"second"]
    assert upstream.connections == 2


async def test_a_reply_that_nobody_asked_for_is_given_to_nobody() -> None:
    surplus = reply_of(b"stale", "Content-Length: 5")
    replies = [reply_of(b"%d" % number, "Content-Length: 1") for number in range(4)]
    replies[0] += surplus
    async with Upstream(*replies).serving() as upstream, aiohttp.ClientSession() as session:
        request = prepare(session, upstream)
        found = [(await request.send(b"{}")).content for _ in replies]

    assert found == [b"0", b"1", b"2", b"3"]
    assert upstream.connections == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_body_that_was_refused_unread_delays_no_other_request(*, tls: bool) -> None:
    server_side, trusting = contexts() if tls else (None, True)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply_of(b"", "Content-Length: 0", status="413 Too large"))
        with suppress(ConnectionError):
            await ended.wait()
        writer.close()

    ended = asyncio.Event()
    async with (
        await asyncio.start_server(refuse, "127.0.0.1", 0, ssl=server_side) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session,
    ):
        scheme = "https" if tls else "http"
        url = URL(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        request = RequestTemplate(session, "POST", url, connect_timeout_s=2)
        async with asyncio.timeout(5):
            statuses = [(await request.send(b"x" * 20_000_000)).status for _ in range(3)]
        ended.set()

    assert statuses == [413] * 3


async def test_a_large_body_is_sent_whole() -> None:
    body = b"x" * 5_000_000
    async with Upstream(OK).serving() as upstream, aiohttp.ClientSession() as session:
        assert (await prepare(session, upstream).send(body)).content == b"ok"

    assert upstream.bodies == [body]


async def test_no_more_connections_are_opened_than_the_session_allows() -> None:
    connector = aiohttp.TCPConnector(limit=2)
    async with (
        Upstream(*[OK] * 20).serving() as upstream,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        request = prepare(session, upstream)
        replies = await asyncio.gather(*(request.send(b"%d" % number) for number in range(20)))

    assert [reply.content for reply in replies] == [b"ok"] * 20
    assert sorted(upstream.bodies, key=int) == [b"%d" % number for number in range(20)]
    assert upstream.connections == 2


async def test_a_server_that_is_away_is_an_error_of_the_connection() -> None:
    async with Upstream().serving() as upstream:
        pass
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await prepare(session, upstream).send(b"{}")


async def test_certificates_are_verified() -> None:
    server_side, trusting = contexts()
    async with Upstream(OK).serving(server_side) as upstream:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
            assert (await prepare(session, upstream).send(b"{}")).content == b"ok"
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await prepare(session, upstream).send(b"{}")


@pytest.mark.parametrize("value", ["b\r\nX-C: d", "b\nX-C: d", "b\rX-C: d"])
async def test_a_header_cannot_bring_others_along(value: str) -> None:
    async with aiohttp.ClientSession() as session:
        session.headers["X-A"] = value
        with pytest.raises(ValueError, match="line break"):
            RequestTemplate(session, "POST", URL("http://127.0.0.1/"), connect_timeout_s=2)
