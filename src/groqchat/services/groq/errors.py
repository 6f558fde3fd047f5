"""Translation of every exception of the groq SDK into a CompletionError."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import TypeVar

import aiohttp
import groq
import httpx

from groqchat.errors import (
    CompletionError,
    CompletionOverloaded,
    CompletionRejected,
    CompletionTimeout,
    CompletionUnavailable,
    PromptTooLarge,
    RateLimited,
    UnknownModel,
)
from groqchat.services.groq.aiohttp_internals import BufferedResponse
from groqchat.services.groq.redaction import redact
from groqchat.services.groq.retry_after import parse_retry_after

E = TypeVar("E", bound=BaseException)

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
CODE = re.compile(r"[a-z0-9_]{1,64}")
# Groq's messages have one or two sentences. Longer ones may quote the user or the model.
MAX_MESSAGE_CHARS = 500

# Looked up along the class hierarchy of the SDK's exception.
BY_CLASS: Mapping[type[groq.GroqError], type[CompletionError]] = {
    groq.BadRequestError: CompletionRejected,
    groq.UnprocessableEntityError: CompletionRejected,
    groq.NotFoundError: CompletionUnavailable,
    groq.RateLimitError: RateLimited,
    groq.AuthenticationError: CompletionUnavailable,
    groq.PermissionDeniedError: CompletionUnavailable,
    groq.ConflictError: CompletionUnavailable,
    groq.InternalServerError: CompletionUnavailable,
    groq.APITimeoutError: CompletionTimeout,
    groq.APIConnectionError: CompletionUnavailable,
    groq.APIResponseValidationError: CompletionUnavailable,
    groq.APIStatusError: CompletionUnavailable,
    groq.APIError: CompletionUnavailable,
    groq.GroqError: CompletionUnavailable,
}
# Statuses for which the SDK has no class, or a class that is too general.
BY_STATUS: Mapping[int, type[CompletionError]] = {
    408: CompletionTimeout,
    413: PromptTooLarge,
    498: CompletionOverloaded,
    503: CompletionOverloaded,
    504: CompletionTimeout,
}
# Clients see Groq's message for these errors, because they can act on it.
SHOWN_ERRORS = (CompletionRejected, UnknownModel, PromptTooLarge, RateLimited)
RETRYABLE_STATUS = frozenset({408, 409, 429, 498})
SERVER_ERRORS = 500
# Each turn compares them, and Python 3.11 needs 0.1 us to look up a member of HTTPStatus.
SUCCESS = 200
REDIRECTION = 300
# HTTP defines no status from here on.
STATUS_END = 600
# The only code of a 404 that the client caused: any other 404 is a wrong GROQ_BASE_URL.
MODEL_NOT_FOUND = "model_not_found"
# The key, the base URL and the proxy belong to the service, so the client is not at fault.
SERVICE_FAULT_STATUS = frozenset({401, 403, 404, 405, 407})
# Codes of a 400 that blocks the service's account: its spend limit, or a restriction by Groq.
SERVICE_FAULT_CODES = frozenset({"blocked_api_access", "organization_restricted"})


# The SDK's class for each status, as its own client chooses it.
SDK_ERRORS: Mapping[int, type[groq.APIStatusError]] = {
    400: groq.BadRequestError,
    401: groq.AuthenticationError,
    403: groq.PermissionDeniedError,
    404: groq.NotFoundError,
    409: groq.ConflictError,
    422: groq.UnprocessableEntityError,
    429: groq.RateLimitError,
}
# aiohttp has decompressed the content already.
DECODED_HEADERS = frozenset({b"content-encoding", b"transfer-encoding"})


def is_success(status: int) -> bool:
    """Return whether a status is a 2xx."""
    return SUCCESS <= status < REDIRECTION


def is_error_status(status: int) -> bool:
    """Return whether a status is a 4xx or a 5xx."""
    return HTTPStatus.BAD_REQUEST <= status < STATUS_END


def is_accepted(result: object) -> bool:
    """Return whether Groq accepted a request; its result is a response of any status, or a body."""
    return not isinstance(result, aiohttp.ClientResponse) or is_success(result.status)


def status_error(method: str, url: str, buffered: BufferedResponse) -> groq.APIStatusError:
    """Return the SDK's exception for a response that is not a 2xx."""
    response = httpx.Response(
        buffered.status,
        headers=[pair for pair in buffered.headers if pair[0].lower() not in DECODED_HEADERS],
        content=buffered.content,
        request=httpx.Request(method, url),
    )
    text = response.text.strip()
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = text
    default = groq.InternalServerError if buffered.status >= SERVER_ERRORS else groq.APIStatusError
    kind = SDK_ERRORS.get(buffered.status, default)
    return kind(f"Error code: {buffered.status}", response=response, body=body)


def completion_error(error: groq.GroqError) -> CompletionError:
    """Return the CompletionError for an SDK exception, without keys and organizations."""
    status = error.status_code if isinstance(error, groq.APIStatusError) else None
    code = _code(error)
    kind = _kind(error, status, code)
    text = _text(error)
    shown = text if issubclass(kind, SHOWN_ERRORS) else None
    return kind(
        f"{type(error).__name__} {status or ''}: {code or _cause(error)}{_request_id(error)}",
        message=shown,
        param="model" if kind is UnknownModel else None,
        retry_after_s=retry_after_s(error),
    )


def _kind(error: groq.GroqError, status: int | None, code: str) -> type[CompletionError]:
    if status is not None and is_service_fault(status, code):
        return CompletionUnavailable
    if status == HTTPStatus.NOT_FOUND:
        return UnknownModel
    return BY_STATUS.get(status or 0) or next(
        BY_CLASS[parent] for parent in type(error).__mro__ if parent in BY_CLASS
    )


def is_service_fault(status: int, code: str) -> bool:
    """Return whether only the operator of the service can resolve an error response of Groq.

    `code` is the code in the body of the response; see `error_code`.
    """
    if status == HTTPStatus.NOT_FOUND:
        return code != MODEL_NOT_FOUND
    return (
        status in SERVICE_FAULT_STATUS
        or code in SERVICE_FAULT_CODES
        # Groq's API never redirects.
        or HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST
    )


def error_code(content: bytes) -> str:
    """Return the error code in the body of an error response, empty if there is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    return _valid_code(_field_of(body, "code"))


def is_retryable(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, groq.APIStatusError):
        return error.status_code in RETRYABLE_STATUS or error.status_code >= SERVER_ERRORS
    return isinstance(error, groq.APIConnectionError)


def retry_after_s(error: BaseException) -> float | None:
    """Return the value of the `Retry-After` header in seconds, None if there is no valid one."""
    if not isinstance(error, groq.APIStatusError):
        return None
    return parse_retry_after(error.response.headers.get("retry-after"))


def _request_id(error: groq.GroqError) -> str:
    """Return the id that Groq gave to the request, for a question to Groq's support."""
    headers = error.response.headers if isinstance(error, groq.APIStatusError) else {}
    found = headers.get("x-request-id", "")
    return f" (Groq's request {found})" if REQUEST_ID.fullmatch(found) else ""


def _cause(error: groq.GroqError) -> str:
    """Return the error of the transport, which names hosts and sockets only."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientResponseError):
        # Its text contains the URL of the proxy, with the credentials.
        return type(cause).__name__
    return f"{type(cause).__name__}: {cause}" if cause else ""


def _code(error: groq.GroqError) -> str:
    """Return Groq's error code, which is safe to log; the message may quote the prompt."""
    return _valid_code(_error_field(error, "code"))


def _valid_code(code: str | None) -> str:
    return code if code and CODE.fullmatch(code) else ""


def _error_field(error: groq.GroqError, field: str) -> str | None:
    return _field_of(error.body if isinstance(error, groq.APIError) else None, field)


def _field_of(body: object, field: str) -> str | None:
    inner = body.get("error", body) if isinstance(body, dict) else None
    value = inner.get(field) if isinstance(inner, dict) else None
    return value if isinstance(value, str) and value else None


def _text(error: groq.GroqError) -> str | None:
    """Return the message of an error in Groq's format, redacted and shortened."""
    text = _error_field(error, "message")
    if text is None:
        return None
    # A key at the limit is masked before the text is cut.
    start = text[: 2 * MAX_MESSAGE_CHARS].encode(errors="replace")
    return redact(start).decode()[:MAX_MESSAGE_CHARS]


def connection_error(method: str, url: str, error: Exception) -> groq.APIError:
    """Return the SDK's exception for a request without a complete response of Groq.

    The response of a proxy that rejects a connection counts as one of Groq.
    """
    if isinstance(error, aiohttp.ClientHttpProxyError):
        rejection = BufferedResponse(status=error.status, headers=(), content=b"")
        return status_error(method, url, rejection)
    request = httpx.Request(method, url)
    if isinstance(error, TimeoutError):
        return groq.APITimeoutError(request=request)
    return groq.APIConnectionError(request=request)


def read_error(error: Exception) -> CompletionError:
    """Return the CompletionError for a response that breaks off or pauses for too long."""
    if isinstance(error, TimeoutError):
        return CompletionTimeout("a pause of the response exceeded GROQ_READ_TIMEOUT_S")
    return CompletionUnavailable(f"during the response: {type(error).__name__}")


def strip_tracebacks(error: E) -> E:
    """Remove the tracebacks of an error and of its causes, and return it.

    Some frames of aiohttp reference the error that references them. Each failed request would
    leave such a cycle, which contains the request body, to the garbage collector.
    """
    found: list[BaseException] = [error]
    for each in found:
        each.__traceback__ = None
        found += [
            other
            for other in (each.__context__, each.__cause__)
            if other is not None and not any(other is known for known in found)
        ]
    return error
