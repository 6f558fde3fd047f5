"""Clients that send `Expect: 100-continue` and wait before they send their body."""

import json

import pytest

from groqchat.runtime import runner
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_http import connect

CHAT = f"{BASE}/chat"
COMPLETIONS = "/openai/v1/chat/completions"
TYPE = "Content-Type: application/json"
HELLO = json.dumps({"message": "Hello"}).encode()


def head(path: str, *headers: str) -> list[str]:
    return [f"POST {path} HTTP/1.1", "Host: localhost", "Expect: 100-continue", *headers]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((TYPE, "Content-Length: 2000"), (413, "body_too_large")),
        (("Content-Type: text/plain", "Content-Length: 2"), (415, "unsupported_media_type")),
        (
            (TYPE, "Content-Encoding: compress", "Content-Length: 2"),
            (415, "unsupported_media_type"),
        ),
        ((TYPE, "Idempotency-Key: ", "Content-Length: 2"), (422, "invalid_field")),
    ],
    ids=["too large", "type", "encoding", "header"],
)
async def test_a_request_that_is_rejected_is_not_asked_for_its_body(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    headers: tuple[str, ...],
    expected: tuple[int, str],
) -> None:
    # The end of the service would wait for the body that does not come.
    monkeypatch.setattr(runner, "SHUTDOWN_TIMEOUT_S", 0.1)
    api = await serve(max_body_bytes=1024)
    async with connect(api) as one:
        await one.send(*head(path, *headers))
        status, _, body = await one.response()
    assert (status, json.loads(body)["error"]["code"]) == expected


@pytest.mark.parametrize("length", [f"Content-Length: {len(HELLO)}", "Transfer-Encoding: chunked"])
async def test_a_request_that_can_be_answered_is_asked_for_its_body(
    serve: Serve, length: str
) -> None:
    api = await serve()
    async with connect(api) as one:
        await one.send(*head(CHAT, TYPE, length))
        assert await one.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        is_chunked = length.endswith("chunked")
        one.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(HELLO), HELLO) if is_chunked else HELLO)
        assert (await one.response())[0] == 200
