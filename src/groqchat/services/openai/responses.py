"""Responses of Groq: which of them the client receives, and the errors for all others."""

import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import ClientError, ClientResponse

from groqchat import sse
from groqchat.errors import CompletionError, CompletionTimeout, CompletionUnavailable, RateLimited
from groqchat.services.groq.aiohttp_internals import BufferedResponse
from groqchat.services.groq.completions import first_choice, parse_json, valid_tokens
from groqchat.services.groq.errors import (
    RETRYABLE_STATUS,
    completion_error,
    is_error_status,
    status_error,
)
from groqchat.services.groq.rate_limits import rate_limit_body
from groqchat.services.groq.redaction import redact
from groqchat.services.groq.retry_after import parse_retry_after
from groqchat.services.openai.messages import OpenAIMessage
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message

# Groq's headers that clients act on.
FORWARDED_HEADERS = ("x-ratelimit-", "x-groq-")
RETRY_AFTER = "Retry-After"
# More than the longest answer of any model, in OpenAI's format.
MAX_RESPONSE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyResponse:
    """The response for the client: a JSON body, or the events of a stream.

    `close` is called when the client has received its response, or has disconnected.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    events: AsyncIterator[bytes] | None = None
    close: Callable[[], object] = lambda: None


def starts_stream(response: ClientResponse, *, is_streamed: bool) -> bool:
    """Return whether the events of a streamed completion follow.

    Closes the response and raises CompletionUnavailable if it is not what the request asked for.
    """
    if response.status != HTTPStatus.OK:
        return False
    is_stream = response.content_type == sse.CONTENT_TYPE
    if is_stream != is_streamed:
        response.close()
        raise CompletionUnavailable("Groq's response has another content type than requested")
    return is_stream


async def chunks(response: ClientResponse) -> AsyncIterator[bytes]:
    """Yield a response as it arrives; raise CompletionError beyond MAX_RESPONSE_BYTES."""
    size = 0
    try:
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                raise CompletionUnavailable(f"more than {MAX_RESPONSE_BYTES} bytes")
            yield chunk
    except TimeoutError as error:
        raise CompletionTimeout("no data during the answer") from error
    except (ClientError, OSError) as error:
        raise CompletionUnavailable(f"during the answer: {type(error).__name__}") from error


def parse_reply(body: bytes) -> dict[str, Any]:
    """Return the completion in a response body; raise CompletionUnavailable if there is none."""
    reply = parse_json(body)
    try:
        choice = first_choice(reply["choices"])
        usage, fields = reply.get("usage") or {}, (reply.get("model"), choice.get("finish_reason"))
        content = choice["message"].get("content")
        is_valid = isinstance(content, str | None) and isinstance(usage, dict)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise CompletionUnavailable("Groq's response is not a completion") from None
    if not is_valid or not all(isinstance(text, str | None) for text in fields):
        raise CompletionUnavailable("Groq's completion has fields of the wrong type")
    completion: dict[str, Any] = reply
    return completion


def answer_of(reply: Mapping[str, Any]) -> Message:
    """Return the answer of a completion in its stored form."""
    choice = first_choice(reply["choices"])
    return answer_message(
        choice["message"],
        model=reply.get("model"),
        tokens=valid_tokens((reply.get("usage") or {}).get("total_tokens")),
        finish_reason=choice.get("finish_reason"),
    )


def answer_message(
    message: OpenAIMessage, *, model: str | None, tokens: int | None, finish_reason: str | None
) -> Message:
    """Return a completion's message in its stored form: its text and its tool calls."""
    content, calls = message.get("content"), message.get("tool_calls")
    return Message(
        id=new_message_id(),
        role="assistant",
        content=content if isinstance(content, str) else "",
        model=model,
        tokens=tokens,
        finish_reason=finish_reason,
        extra={"tool_calls": calls} if isinstance(calls, list) and calls else None,
    )


def forwarded_error(response: ClientResponse, content: bytes) -> ProxyResponse:
    """Return an error response for the client; raise CompletionError if Groq's API did not send it.

    For example, a load balancer in front of the API sends an HTML page.
    """
    if not (is_error_status(response.status) and _is_error(content)):
        buffered = BufferedResponse(
            status=response.status, headers=response.raw_headers, content=content
        )
        raise completion_error(status_error("POST", str(response.url), buffered))
    headers = {
        name: redact(value.encode()).decode() for name, value in forwarded_headers(response).items()
    }
    return ProxyResponse(status=response.status, headers=headers, body=redact(content))


def rate_limited(error: RateLimited) -> ProxyResponse:
    """Return the 429 that Groq would send while its limit applies, for the retries of SDKs."""
    retry_after_s = error.retry_after_s or 1.0
    return ProxyResponse(
        status=HTTPStatus.TOO_MANY_REQUESTS,
        headers={RETRY_AFTER: str(math.ceil(retry_after_s))},
        body=rate_limit_body(retry_after_s),
    )


def is_final(status: int) -> bool:
    """Return whether Groq would reject the same request again."""
    is_client_error = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return is_client_error and status not in RETRYABLE_STATUS


def forwarded_headers(response: ClientResponse) -> dict[str, str]:
    """Return the headers of a response that the client receives too."""
    headers = {
        str(name): value
        for name, value in response.headers.items()
        # aiohttp does not send a control character or a lone surrogate.
        if name.lower().startswith(FORWARDED_HEADERS) and value.isascii() and value.isprintable()
    }
    if (value := response.headers.get(RETRY_AFTER)) is not None:
        seconds = parse_retry_after(value)
        if seconds is not None:
            headers[RETRY_AFTER] = f"{seconds:g}" if seconds < 1 else str(math.ceil(seconds))
    return headers


def _is_error(content: bytes) -> bool:
    """Return whether a body is an error in OpenAI's format."""
    try:
        body: Any = parse_json(content)
    except CompletionError:
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), dict)
