"""Requests sent with a template: the private internals of aiohttp behave as expected."""

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


def raw_response(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return the bytes of a response with exactly these headers."""
    return (
        "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, "")).encode() + content
    )


OK = raw_response(b"ok", "Content-Length: 2")


class Upstream:
    """A server that records each request and answers it with the next of its responses.

    It closes the connection instead of sending a response that is None, and after a response with
    `Connection: close`.
    """

    def __init__(self, *responses: bytes | None) -> None:
        self.responses = list(responses)
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.url = URL()

    @asynccontextmanager
    async def serve(self, context: ssl.SSLContext | None = None) -> AsyncIterator["Upstream"]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=context)
        async with server:
            scheme = "https" if context else "http"
            port = server.sockets[0].getsockname()[1]
            self.url = URL(f"{scheme}://127.0.0.1:{port}/v1/answers?a=b%20c")
            yield self

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while self.responses:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = re.search(rb"content-length: (\d+)", head.lower())
            self.heads.append(head)
            self.bodies.append(await reader.readexactly(int(length[1]) if length else 0))
            response = self.responses.pop(0)
            if response is None:
                break
            writer.write(response)
            if b"connection: close" in response.lower():
                break
        writer.close()


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server on 127.0.0.1 and of a client that trusts it."""
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    return server_side, client_side


def template_for(
    session: aiohttp.ClientSession, upstream: Upstream, method: str = "POST"
) -> RequestTemplate:
    return RequestTemplate(session, method, upstream.url, connect_timeout_s=2)


async def test_a_request_has_the_same_head_as_a_request_of_the_session() -> None:
    headers = {"Authorization": "Bearer käy", "X-Several": "1", "Content-Type": "application/json"}
    async with Upstream(OK, OK).serve() as upstream, aiohttp.ClientSession() as session:
        session.headers.update(headers)
        session.headers.add("X-Several", "2")
        async with session.post(upstream.url, data=b'{"a":1}') as response:
            await response.read()
        received = await template_for(session, upstream).send(b'{"a":1}')

    assert (received.status, received.content) == (200, b"ok")
    assert upstream.bodies == [b'{"a":1}'] * 2
    expected, sent = ([*map(bytes.lower, head.split(b"\r\n"))] for head in upstream.heads)
    assert expected[0] == sent[0] == b"post /v1/answers?a=b%20c http/1.1"
    assert sorted(sent) == sorted(expected)


async def test_a_request_without_a_body_has_no_content_length() -> None:
    async with Upstream(OK).serve() as upstream, aiohttp.ClientSession() as session:
        response = await template_for(session, upstream, "GET").send()

    assert response.content == b"ok"
    assert upstream.heads[0].startswith(b"GET /v1/answers?a=b%20c HTTP/1.1\r\n")
    assert b"content-length" not in upstream.heads[0].lower()


GZIPPED = gzip.compress(b"unpacked")
CHUNKED = b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
EARLY_HINTS = raw_response(b"", "Link: </a>", status="103 Early Hints")
CONTINUE = raw_response(b"", status="100 Continue") + raw_response(b"", status="102 Processing")


@pytest.mark.parametrize(
    ("response", "status", "content"),
    [
        (raw_response(CHUNKED, "Transfer-Encoding: chunked"), 200, b"abc"),
        (
            raw_response(GZIPPED, "Content-Encoding: gzip", f"Content-Length: {len(GZIPPED)}"),
            200,
            b"unpacked",
        ),
        (raw_response(b"to the end", "Connection: close"), 200, b"to the end"),
        (EARLY_HINTS + OK, 200, b"ok"),
        (CONTINUE + OK, 200, b"ok"),
        (raw_response(b"", status="204 No Content"), 204, b""),
        (
            raw_response(b"", "Location: /b", "Content-Length: 0", status="307 Temporary Redirect"),
            307,
            b"",
        ),
        (raw_response(b"{}", "Content-Length: 2", status="429 Too Many Requests"), 429, b"{}"),
        (
            raw_response(
                b"", "Connection: close, upgrade", "Upgrade: h2c", status="101 Switching Protocols"
            ),
            101,
            b"",
        ),
    ],
    ids=[
        *("chunked", "gzip", "until close", "early hints", "informational"),
        *("no content", "redirect", "error", "protocol change"),
    ],
)
async def test_every_kind_of_response_is_returned_completely(
    response: bytes, status: int, content: bytes
) -> None:
    async with Upstream(response, OK).serve() as upstream, aiohttp.ClientSession() as session:
        request = template_for(session, upstream)
        first = await request.send(b"{}")
        second = await request.send(b"{}")

    assert (first.status, first.content) == (status, content)
    assert (second.status, second.content) == (200, b"ok")
    assert upstream.connections == 1 + (b"close" in response)


async def test_response_headers_are_returned_unchanged() -> None:
    headers = ("Retry-After: 3", "X-A: b", "X-A: c", "Content-Length: 0")
    response = raw_response(b"", *headers, status="429 Too Many Requests")
    async with Upstream(response).serve() as upstream, aiohttp.ClientSession() as session:
        received = await template_for(session, upstream).send(b"{}")

    assert received.headers == (
        (b"Retry-After", b"3"),
        (b"X-A", b"b"),
        (b"X-A", b"c"),
        (b"Content-Length", b"0"),
    )


@pytest.mark.parametrize(
    "response",
    [
        None,
        raw_response(b"half", "Connection: close", "Content-Length: 9"),
        raw_response(b"none", "Connection: close", "Content-Encoding: gzip", "Content-Length: 4"),
        raw_response(b"zz\r\n", "Connection: close", "Transfer-Encoding: chunked"),
        b"SSH-2.0-OpenSSH connection: close\r\n\r\n",
    ],
    ids=["no response", "short body", "invalid gzip", "invalid chunks", "not HTTP"],
)
async def test_an_incomplete_response_is_an_error_and_closes_the_connection(
    response: bytes | None,
) -> None:
    async with Upstream(response, OK).serve() as upstream, aiohttp.ClientSession() as session:
        request = template_for(session, upstream)
        with pytest.raises(aiohttp.ClientError):
            await request.send(b"{}")
        assert (await request.send(b"{}")).content == b"ok"

    assert upstream.connections == 2


async def test_a_response_over_the_size_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_internals, "MAX_RESPONSE_BYTES", 5)
    response = raw_response(b"123456", "Content-Length: 6")
    async with Upstream(response).serve() as upstream, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientPayloadError, match="more than 5 bytes"):
            await template_for(session, upstream).send(b"{}")


async def test_a_cancelled_request_closes_its_connection() -> None:
    async with Upstream(b"", OK).serve() as upstream, aiohttp.ClientSession() as session:
        request = template_for(session, upstream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await request.send(b"first")
        assert (await request.send(b"second")).content == b"ok"

    assert upstream.bodies == [b"first", b"second"]
    assert upstream.connections == 2


async def test_an_unexpected_response_is_not_returned_to_a_later_request() -> None:
    unexpected = raw_response(b"stale", "Content-Length: 5")
    responses = [raw_response(b"%d" % number, "Content-Length: 1") for number in range(4)]
    responses[0] += unexpected
    async with Upstream(*responses).serve() as upstream, aiohttp.ClientSession() as session:
        request = template_for(session, upstream)
        received = [(await request.send(b"{}")).content for _ in responses]

    assert received == [b"0", b"1", b"2", b"3"]
    assert upstream.connections == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_body_that_the_server_leaves_unread_does_not_delay_other_requests(
    *, tls: bool
) -> None:
    server_side, client_side = contexts() if tls else (None, True)

    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw_response(b"", "Content-Length: 0", status="413 Content Too Large"))
        with suppress(ConnectionError):
            await ended.wait()
        writer.close()

    ended = asyncio.Event()
    async with (
        await asyncio.start_server(reject, "127.0.0.1", 0, ssl=server_side) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_side)) as session,
    ):
        scheme = "https" if tls else "http"
        url = URL(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        request = RequestTemplate(session, "POST", url, connect_timeout_s=2)
        async with asyncio.timeout(5):
            statuses = [(await request.send(b"x" * 20_000_000)).status for _ in range(3)]
        ended.set()

    assert statuses == [413] * 3


async def test_a_large_body_is_sent_completely() -> None:
    body = b"x" * 5_000_000
    async with Upstream(OK).serve() as upstream, aiohttp.ClientSession() as session:
        assert (await template_for(session, upstream).send(body)).content == b"ok"

    assert upstream.bodies == [body]


async def test_the_connection_limit_of_the_session_applies() -> None:
    connector = aiohttp.TCPConnector(limit=2)
    async with (
        Upstream(*[OK] * 20).serve() as upstream,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        request = template_for(session, upstream)
        responses = await asyncio.gather(*(request.send(b"%d" % number) for number in range(20)))

    assert [response.content for response in responses] == [b"ok"] * 20
    assert sorted(upstream.bodies, key=int) == [b"%d" % number for number in range(20)]
    assert upstream.connections == 2


async def test_an_unreachable_server_is_a_connection_error() -> None:
    async with Upstream().serve() as upstream:
        pass
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await template_for(session, upstream).send(b"{}")


async def test_certificates_are_verified() -> None:
    server_side, client_side = contexts()
    async with Upstream(OK).serve(server_side) as upstream:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=client_side)
        ) as session:
            assert (await template_for(session, upstream).send(b"{}")).content == b"ok"
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await template_for(session, upstream).send(b"{}")


@pytest.mark.parametrize("value", ["b\r\nX-C: d", "b\nX-C: d", "b\rX-C: d"])
async def test_a_header_with_a_line_break_is_rejected(value: str) -> None:
    async with aiohttp.ClientSession() as session:
        session.headers["X-A"] = value
        with pytest.raises(ValueError, match="line break"):
            RequestTemplate(session, "POST", URL("http://127.0.0.1/"), connect_timeout_s=2)
