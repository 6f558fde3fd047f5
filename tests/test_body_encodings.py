"""Bodies with a Content-Encoding or a Transfer-Encoding."""

import gzip
import json
import logging
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq
from tests.support.raw_http import connect, post

JSON = {"Content-Type": "application/json"}
CHAT = f"{BASE}/chat"
BODY = b'{"message": "a"}'
UNSUPPORTED = "The content encoding of the body is not supported: use gzip, deflate or none."


@pytest.fixture
async def no_turn(api: ClientSession, redis: Redis, groq: MockGroq) -> Any:
    """Check after the test: nothing is stored, Groq has no request, the service still responds."""
    yield
    assert await redis.dbsize() == 0
    assert groq.requests == []
    async with api.post(CHAT, json={"message": "Hello"}) as response:
        assert response.status == 200


async def test_a_compressed_body_is_accepted(api: ClientSession) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    async with api.post(CHAT, data=gzip.compress(BODY), headers=headers) as response:
        assert response.status == 200


@pytest.mark.usefixtures("no_turn")
async def test_a_body_that_is_not_compressed_as_declared_is_rejected(api: ClientSession) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    await assert_error(await api.post(CHAT, data=BODY, headers=headers), 400, "malformed_body")


@pytest.mark.parametrize("request_line", [b"POST /unknown", b"GET /healthz"])
async def test_a_malformed_body_that_nobody_reads_is_not_logged_as_an_error(
    api: ClientSession, caplog: pytest.LogCaptureFixture, request_line: bytes
) -> None:
    head = post(CHAT, b"malformed", "Content-Encoding: gzip")
    async with connect(api) as one:
        one.writer.write(head.replace(f"POST {CHAT}".encode(), request_line))
        await one.read_to_end()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("no_turn")
@pytest.mark.parametrize("encoding", ["snappy", "", "gzip, deflate", "br", "BR", "zstd"])
async def test_an_unknown_content_encoding_is_a_415(api: ClientSession, encoding: str) -> None:
    headers = {**JSON, "Content-Encoding": encoding}
    response = await api.post(CHAT, data=BODY, headers=headers)
    error = await assert_error(response, 415, "unsupported_media_type")
    assert error["message"] == UNSUPPORTED


@pytest.mark.usefixtures("no_turn")
@pytest.mark.parametrize("size", [len(BODY), 3_000_000])
async def test_a_client_that_still_sends_an_undecodable_body_receives_the_error(
    api: ClientSession, size: int
) -> None:
    body = BODY.rjust(size)
    async with connect(api) as one:
        one.writer.write(post(CHAT, body, "Content-Encoding: br") + post(CHAT, BODY))
        assert await one.error() == (415, "unsupported_media_type", "close")
        one.writer.close()
        # aiohttp cannot read the next request, so the connection ends.
        assert await one.read_to_end() == b""


def chunked(*headers: str) -> bytes:
    """Return a request with a body in one chunk."""
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.usefixtures("no_turn")
@pytest.mark.parametrize(
    "headers",
    [
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: x-unknown,chunked", "Content-Encoding: identity"),
    ],
)
async def test_an_unknown_transfer_encoding_is_a_501_and_the_connection_goes_on(
    api: ClientSession, headers: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(api) as one:
        one.writer.write(chunked(*headers))
        status, _, body = await one.response()
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (501, "not_implemented")
        assert error["type"] == "invalid_request_error"
        assert error["message"] == "The only supported transfer encoding is chunked."
        await one.send("GET /healthz HTTP/1.1", "Host: localhost")
        assert (await one.response())[0] == 200
    # An operator can do nothing about it.
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("value", ["chunked", "Chunked"])
async def test_a_chunked_body_is_accepted(api: ClientSession, value: str) -> None:
    async with connect(api) as one:
        one.writer.write(chunked(f"Transfer-Encoding: {value}"))
        assert (await one.response())[0] == 200
