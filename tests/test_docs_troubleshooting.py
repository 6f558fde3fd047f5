"""The page for troubleshooting explains each failure of Groq that the log reports."""

import asyncio
import re
from typing import Any

import orjson
import pytest

from groqchat.services.groq import completions
from groqchat.services.openai import relay
from groqchat.services.turns import turn_completion
from tests.conftest import Serve
from tests.support.docs import read
from tests.support.raw_groq import (
    LAST_CHUNK,
    STREAM_HEAD,
    RawGroq,
    Respond,
    chunked,
    event,
    whole,
)
from tests.test_groq_deadlines import send

KINDS = ["chat", "chat stream", "openai", "openai stream", "openai session"]
HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"
CUT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"


def error(status: int, code: str = "x") -> bytes:
    """Return an error response of Groq."""
    body = {"error": {"message": "m", "type": "t", "code": code}}
    return whole(orjson.dumps(body), status=f"{status} Error")


def stream(*parts: bytes, ends: bool = True) -> bytes:
    return STREAM_HEAD + b"".join(map(chunked, parts)) + (LAST_CHUNK if ends else b"")


RESPONSES = {
    "401": error(401),
    "403": error(403),
    "404": error(404),
    "405": error(405),
    "302": whole(b"", status="302 Found"),
    "402": error(402),
    "407": error(407),
    "409": error(409),
    "blocked": error(400, "blocked_api_access"),
    "restricted": error(400, "organization_restricted"),
    "500": error(500),
    "502 page": whole(b"<html>", status="502 Bad Gateway"),
    "no HTTP": b"GARBAGE\r\n\r\n",
    "no response": b"",
    "cut body": CUT,
    "cut stream": stream(event("Hi"), ends=False),
    "malformed chunk": stream(event("Hi"), ends=False) + b"ZZZ\r\n",
    "no finish reason": stream(event("Hi")),
    "no JSON in a stream": stream(event("Hi"), b"data: {\n\n"),
    "no chunk": stream(event("Hi"), b"data: []\n\n"),
    "error event": stream(event("Hi"), b'data: {"error":{"code":"over_capacity"}}\n\n'),
    "long event": stream(b"data: " + b"x" * 2000, ends=False),
    "long answer": stream(event("x" * 500), event("x" * 500)),
    "no JSON": whole(b"{"),
    "no completion": whole(b"{}"),
    "wrong fields": whole(b'{"choices":[{"message":{"content":1}}],"model":1}'),
    "page": HTML,
}


def explained_reasons() -> list[str]:
    """Return the parts of log lines that the page lists for `completion_unavailable`."""
    _, _, section = read("docs/troubleshooting.md").partition("### 502 `completion_unavailable`")
    rows = re.findall(r"^\| (`.*?) \|", section.partition("\n### ")[0], flags=re.MULTILINE)
    return [reason for row in rows for reason in re.findall("`([^`]+)`", row)]


def close_after(data: bytes) -> Respond:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    return respond


@pytest.mark.parametrize("data", RESPONSES.values(), ids=RESPONSES)
async def test_each_reason_in_the_log_is_explained(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(turn_completion, "MAX_ANSWER_CHARS", 600)
    for module in (completions, relay):
        monkeypatch.setattr(module, "MAX_EVENT_BYTES", 1500)
    known = explained_reasons()
    async with RawGroq(close_after(data)).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_max_retries=0)
        for kind in KINDS:
            caplog.clear()
            _, text = await send(api, kind)
            if '"completion_unavailable"' in text:
                assert [reason for reason in known if reason in _reported(caplog)] != []


def _reported(caplog: Any) -> str:
    lines = [line for line in caplog.messages if "completion_unavailable (" in line]
    assert len(lines) == 1
    return str(lines[0])
