"""Every exception of the groq SDK as one of ours."""

import re
from collections.abc import Mapping

import groq

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

ORGANISATION = re.compile(r"\borg_[A-Za-z0-9]+")
ORGANISATION_BYTES = re.compile(ORGANISATION.pattern.encode())
CODE = re.compile(r"[a-z0-9_]{1,64}")
# Groq's texts are a sentence or two. What is longer may repeat what the user or the model said.
MAX_MESSAGE_CHARS = 500

# Looked up along the class hierarchy of the SDK's exception.
BY_CLASS: Mapping[type[groq.GroqError], type[CompletionError]] = {
    groq.BadRequestError: CompletionRejected,
    groq.UnprocessableEntityError: CompletionRejected,
    groq.NotFoundError: UnknownModel,
    groq.RateLimitError: RateLimited,
    # The key is the service's, not the client's: its failure is ours.
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
# Statuses for which the SDK has no class of their own, or one that says too little.
BY_STATUS: Mapping[int, type[CompletionError]] = {
    408: CompletionTimeout,
    413: PromptTooLarge,
    498: CompletionOverloaded,
    503: CompletionOverloaded,
    504: CompletionTimeout,
}
# A client can act on these texts of Groq's; others are for the log alone.
SHOWN = (CompletionRejected, UnknownModel, PromptTooLarge, RateLimited)
PASSING_STATUS = frozenset({408, 409, 429, 498})


def completion_error(error: groq.GroqError) -> CompletionError:
    """Return our error for one of the SDK's, with Groq's text redacted."""
    status = error.status_code if isinstance(error, groq.APIStatusError) else None
    kind = BY_STATUS.get(status or 0) or next(
        BY_CLASS[parent] for parent in type(error).__mro__ if parent in BY_CLASS
    )
    text = _text(error)
    shown = text if issubclass(kind, SHOWN) else None
    return kind(
        f"{type(error).__name__} {status or ''}: {_code(error) or _cause(error)}",
        message=shown,
        param="model" if kind is UnknownModel else None,
        retry_after_s=retry_after_s(error),
    )


def is_passing(error: BaseException) -> bool:
    """Tell whether the same request may succeed a moment later."""
    if isinstance(error, groq.APIStatusError):
        return error.status_code in PASSING_STATUS or error.status_code >= 500  # noqa: PLR2004
    return isinstance(error, groq.APIConnectionError)


def retry_after_s(error: BaseException) -> float | None:
    """Return how long Groq asked to wait, in seconds."""
    if not isinstance(error, groq.APIStatusError):
        return None
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(seconds, 0.0) if seconds < float("inf") else None


def redacted(content: bytes) -> bytes:
    """Return Groq's text without the name of the organisation that the key belongs to."""
    return ORGANISATION_BYTES.sub(b"org_***", content)


def _cause(error: groq.GroqError) -> str:
    """Return what the transport said, which is about hosts and sockets."""
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}" if cause else ""


def _code(error: groq.GroqError) -> str:
    """Return Groq's code, which the log may hold: its text might repeat the prompt."""
    code = _said(error, "code")
    return code if code and CODE.fullmatch(code) else ""


def _said(error: groq.GroqError, field: str) -> str | None:
    body = error.body if isinstance(error, groq.APIError) else None
    inner = body.get("error", body) if isinstance(body, dict) else None
    value = inner.get(field) if isinstance(inner, dict) else None
    return value if isinstance(value, str) and value else None


def _text(error: groq.GroqError) -> str | None:
    """Return what Groq said, if it said it in its own error shape."""
    text = _said(error, "message")
    if text is None:
        return None
    clean = text[:MAX_MESSAGE_CHARS].encode(errors="replace").decode()
    return ORGANISATION.sub("org_***", clean)
