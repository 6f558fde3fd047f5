"""Responses of Groq that the OpenAI-compatible endpoint forwards, wraps or hides."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import openai
import orjson
import pytest
from aiohttp import ClientResponse, ClientSession

from tests.conftest import Serve
from tests.support.api import assert_error
from tests.support.raw_groq import (
    COMPLETION,
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    RawGroq,
    chunked,
    event,
    whole,
)
from tests.support.streams import history

COMPLETIONS = "/openai/v1/chat/completions"
SESSION = {"X-Session-Id": "s"}
PLAIN = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
FINISHED = event("Hi", "stop") + DONE
UNAVAILABLE = (502, "completion_unavailable")

# Starts the service with a Groq server that sends these bytes to each completion request.
Answering = Callable[..., Awaitable[ClientSession]]


def groq_error(code: str | None, message: str = "text of org_01abc") -> bytes:
    return orjson.dumps({"error": {"message": message, "type": "t", "code": code}})


def other(content: bytes, content_type: str = "text/html", status: str = "200 OK") -> bytes:
    """Return a response in another format than that of Groq's API."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


@pytest.fixture
async def answering(serve: Serve) -> AsyncIterator[Answering]:
    async with AsyncExitStack() as stack:

        async def start(answer: bytes, *, closes: bool = False) -> ClientSession:
            async def respond(writer: asyncio.StreamWriter) -> None:
                writer.write(answer)
                if closes:
                    writer.close()

            raw = await stack.enter_async_context(RawGroq(respond).serve())
            return await serve(groq_base_url=raw.url, groq_max_retries=0)

        yield start


async def post(api: ClientSession, *, stream: bool, session: bool) -> ClientResponse:
    headers = SESSION if session else {}
    return await api.post(COMPLETIONS, json={**PLAIN, "stream": stream}, headers=headers)


async def stored(api: ClientSession) -> list[str]:
    return [message["content"] for message in await history(api)]


KINDS = pytest.mark.parametrize(
    ("stream", "session"), [(False, False), (False, True), (True, False), (True, True)]
)
STREAMED = pytest.mark.parametrize("stream", [False, True])


@KINDS
@pytest.mark.parametrize(
    "fault",
    [
        ("401 Unauthorized", "invalid_api_key"),
        ("403 Forbidden", "permissions_error"),
        ("404 Not Found", "unknown_url"),
        ("404 Not Found", None),
        ("405 Method Not Allowed", None),
        ("400 Bad Request", "blocked_api_access"),
    ],
)
async def test_a_fault_of_the_service_is_a_502_that_keeps_the_message(
    answering: Answering,
    caplog: pytest.LogCaptureFixture,
    fault: tuple[str, str | None],
    *,
    stream: bool,
    session: bool,
) -> None:
    status, code = fault
    api = await answering(whole(groq_error(code), status=status))

    response = await post(api, stream=stream, session=session)

    error = await assert_error(response, *UNAVAILABLE)
    assert error["message"] == "The model failed to answer."
    assert await stored(api) == (["Hello"] if session else [])
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert any(f"status {status[:3]}" in record.getMessage() for record in errors)
    assert "org_01abc" not in caplog.text


@STREAMED
async def test_openais_sdk_raises_its_exception_for_a_fault_of_the_service(
    answering: Answering, *, stream: bool
) -> None:
    api = await answering(whole(groq_error("invalid_api_key"), status="401 Unauthorized"))
    url = f"{(await api.get('/healthz')).url.origin()}/openai/v1"
    messages: Any = PLAIN["messages"]
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model="m", messages=messages, stream=stream)
    assert raised.value.status_code == 502
    assert raised.value.code == "completion_unavailable"


@pytest.mark.parametrize(("stream", "session"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    "case",
    [
        ("400 Bad Request", "json_validate_failed", False),
        ("413 Payload Too Large", "request_too_large", False),
        ("422 Unprocessable Entity", None, False),
        ("404 Not Found", "model_not_found", False),
        ("429 Too Many Requests", "rate_limit_exceeded", True),
        ("498 Capacity", None, True),
        ("500 Internal Server Error", None, True),
        ("503 Service Unavailable", None, True),
    ],
)
async def test_an_error_of_groq_is_forwarded(
    answering: Answering, case: tuple[str, str | None, bool], *, stream: bool, session: bool
) -> None:
    status, code, is_kept = case
    api = await answering(
        whole(groq_error(code), "Retry-After: 7", "X-RateLimit-Limit-Requests: 9", status=status)
    )

    response = await post(api, stream=stream, session=session)

    assert response.status == int(status[:3])
    assert await response.read() == groq_error(code, "text of org_***")
    assert response.content_type == "application/json"
    assert response.headers["retry-after"] == "7"
    assert response.headers["x-ratelimit-limit-requests"] == "9"
    assert await stored(api) == (["Hello"] if session and is_kept else [])


@KINDS
async def test_a_header_that_cannot_be_forwarded_is_left_out(
    answering: Answering, *, stream: bool, session: bool
) -> None:
    headers = ("X-Groq-Odd: a\x01b", "X-Groq-Other: \xe9", "X-Groq-Id: 1")
    lines = "".join(f"{line}\r\n" for line in headers).encode("latin-1")
    answer = STREAM_HEAD + chunked(FINISHED) + LAST_CHUNK if stream else whole(COMPLETION)
    api = await answering(answer.replace(b"\r\n", b"\r\n" + lines, 1))

    async with await post(api, stream=stream, session=session) as response:
        assert response.status == 200
        assert [name for name in response.headers if name.startswith("X-Groq")] == ["X-Groq-Id"]
        assert await response.read() == (FINISHED if stream else COMPLETION)


NOT_COMPLETIONS = {
    "302": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "201": whole(COMPLETION, status="201 Created"),
    "html": other(b"<html>Welcome</html>"),
    "empty": whole(b""),
    "empty object": whole(b"{}"),
    "list": whole(b"[]"),
    "null": whole(b"null"),
    "no choice": whole(b'{"choices":[]}'),
    "error": whole(groq_error("x")),
    "wrong types": whole(
        b'{"model":1,"choices":[{"message":{"content":"Hi"},"finish_reason":{}}]}'
    ),
    "content that is not text": whole(COMPLETION.replace(b'"Hi"', b"[1]")),
    "unknown status": whole(groq_error("x"), status="600 Odd"),
    "cut JSON": whole(COMPLETION[:-5]),
    "cut body": whole(COMPLETION)[:-5],
    "cut chunk": STREAM_HEAD.replace(b"text/event-stream", b"application/json")
    + chunked(COMPLETION)[:-9],
}


@KINDS
@pytest.mark.parametrize("answer", NOT_COMPLETIONS.values(), ids=NOT_COMPLETIONS)
async def test_a_response_that_is_not_a_completion_is_a_502_that_keeps_the_message(
    answering: Answering, answer: bytes, *, stream: bool, session: bool
) -> None:
    api = await answering(answer, closes=True)

    response = await post(api, stream=stream, session=session)

    await assert_error(response, *UNAVAILABLE)
    assert response.content_type == "application/json"
    assert await stored(api) == (["Hello"] if session else [])


@pytest.mark.parametrize(("stream", "session"), [(False, True), (True, False)])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("400 Bad Request", (400, "completion_rejected")),
        ("413 Payload Too Large", (413, "prompt_too_large")),
        ("429 Too Many Requests", (429, "rate_limited")),
        ("500 Internal Server Error", UNAVAILABLE),
        ("502 Bad Gateway", UNAVAILABLE),
        ("503 Service Unavailable", (503, "completion_overloaded")),
        ("504 Gateway Timeout", (504, "completion_timeout")),
    ],
)
async def test_an_error_page_is_wrapped_and_removes_only_a_rejected_message(
    answering: Answering, status: str, expected: tuple[int, str], *, stream: bool, session: bool
) -> None:
    api = await answering(other(b"<html>A proxy failed</html>", status=status))

    response = await post(api, stream=stream, session=session)

    await assert_error(response, *expected)
    is_rejected = expected[0] in {400, 413}
    assert await stored(api) == (["Hello"] if session and not is_rejected else [])


@STREAMED
async def test_a_response_of_the_other_kind_is_a_502(answering: Answering, *, stream: bool) -> None:
    """Neither an endless stream nor a completion that the client does not parse is forwarded."""
    answer = whole(COMPLETION) if stream else STREAM_HEAD + chunked(b"data: {}\n\n")
    api = await answering(answer)
    await assert_error(await post(api, stream=stream, session=False), *UNAVAILABLE)


async def test_a_body_beyond_the_limit_is_a_502(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groqchat.services.openai.responses.MAX_RESPONSE_BYTES", 1_000_000)
    api = await answering(whole(b" " * 1_000_001))
    await assert_error(await post(api, stream=False, session=False), *UNAVAILABLE)


async def test_a_completion_is_forwarded_byte_for_byte(answering: Answering) -> None:
    content = b' {"choices" : [{"message":{"content":"Hi"}}],\n"x":1.50, "big":%d}' % 10**30
    api = await answering(
        STREAM_HEAD.replace(b"text/event-stream", b"application/json")
        + chunked(content)
        + LAST_CHUNK
    )
    response = await post(api, stream=False, session=True)
    assert (response.status, await response.read()) == (200, content)
    assert await stored(api) == ["Hello", "Hi"]
