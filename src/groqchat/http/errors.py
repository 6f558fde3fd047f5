"""Every error on the wire: one shape, and the status of each class of ours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web
from pydantic import ValidationError

from groqchat import errors, logs
from groqchat.error_models import ErrorAnswer, ErrorDetail, ErrorEvent, ErrorInfo

# Looked up along the class hierarchy; anything else is a 500.
STATUS: dict[type[errors.GroqChatError], int] = {
    errors.InvalidField: 422,
    errors.SessionNotFound: 404,
    errors.IdempotencyKeyReused: 409,
    errors.TurnNotFound: 404,
    errors.TurnLost: 502,
    errors.NotReady: 503,
    errors.Overloaded: 503,
    errors.ShuttingDown: 503,
    errors.HistoryUnavailable: 503,
    errors.HistoryFailed: 500,
    errors.CompletionNotConfigured: 503,
    errors.CompletionRejected: 400,
    errors.UnknownModel: 422,
    errors.PromptTooLarge: 413,
    errors.RateLimited: 429,
    errors.CompletionOverloaded: 503,
    errors.CompletionUnavailable: 502,
    errors.CompletionTimeout: 504,
}
# A client that gets 429 or 503 is told when to come back, even where the cause did not say.
DEFAULT_RETRY_AFTER_S = 1
# Past so many, listing what is wrong takes longer than it helps.
MAX_DETAILS = 50
# Names of unknown fields are repeated so far; ours are shorter.
MAX_PARAM_CHARS = 64
RETRY_AFTER_STATUS = frozenset({429, 503})

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "unavailable_error",
    504: "upstream_error",
}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_MESSAGES = {
    404: "There is nothing at this path.",
    405: "This path does not take this method.",
    413: "The request body is too large.",
}


class RequestError(Exception):
    """A request that is turned down before any service sees it."""

    def __init__(self, error: "WireError") -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class WireError:
    """An error as clients see it; `closes` ends the connection with it."""

    status: int
    code: str
    message: str
    param: str | None = None
    details: Sequence[ErrorDetail] = ()
    retry_after_s: float | None = None
    closes: bool = False

    @property
    def type(self) -> str:
        """The broad kind that the status stands for."""
        kind = "server_error" if self.is_ours else "invalid_request_error"
        return _TYPES.get(self.status, kind)

    @property
    def is_ours(self) -> bool:
        """Whether the service, not the client, is at fault."""
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR

    def body(self) -> dict[str, Any]:
        """Return the JSON object, with the id of the request at hand."""
        return ErrorAnswer(error=self.info()).model_dump()

    def info(self) -> ErrorInfo:
        """Return the error itself, with the id of the request at hand."""
        return ErrorInfo(
            message=self.message,
            type=self.type,
            code=self.code,
            param=self.param,
            request_id=logs.request_id.get(),
            details=list(self.details) or None,
        )

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the status."""
        if self.status not in RETRY_AFTER_STATUS:
            return {}
        seconds = math.ceil(self.retry_after_s or DEFAULT_RETRY_AFTER_S)
        return {"Retry-After": str(max(seconds, 1))}

    def response(self) -> web.Response:
        """Return the whole response."""
        response = web.Response(
            status=self.status,
            body=orjson.dumps(self.body()),
            content_type="application/json",
            headers=self.headers(),
        )
        if self.closes:
            response.force_close()
        return response


def wire_error(error: Exception) -> WireError:
    """Return what clients see of any exception; what we do not know is a plain 500."""
    if isinstance(error, RequestError):
        return error.error
    if isinstance(error, errors.GroqChatError):
        status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
        return WireError(
            status=status,
            code=error.code,
            message=error.message,
            param=error.param,
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, web.HTTPException):
        return http_error(error.status)
    return WireError(
        status=500,
        code=errors.GroqChatError.code,
        message=errors.GroqChatError.default_message,
    )


def event_error(error: Exception) -> dict[str, Any]:
    """Return the data of an error event: the error and the status that would go with it."""
    wire = wire_error(error)
    event = ErrorEvent(error=wire.info(), status=wire.status, retry_after_s=wire.retry_after_s)
    return event.model_dump()


def error_of_event(data: dict[str, Any]) -> RequestError:
    """Return the error that the data of an error event stands for."""
    error = data["error"]
    return RequestError(
        WireError(
            status=data["status"],
            code=error["code"],
            message=error["message"],
            param=error["param"],
            retry_after_s=data["retry_after_s"],
        )
    )


def http_error(status: int) -> WireError:
    """Return the error for a status that aiohttp itself gives."""
    phrase = HTTPStatus(status).phrase
    return WireError(
        status=status,
        code=_CODES.get(status, phrase.lower().replace(" ", "_")),
        message=_MESSAGES.get(status, f"{phrase}."),
    )


def validation_error(error: ValidationError) -> WireError:
    """Return the error that names every field that is wrong, and repeats no value."""
    if error.error_count() > MAX_DETAILS:
        return WireError(
            status=422,
            code=errors.InvalidField.code,
            message=f"More than {MAX_DETAILS} fields are wrong.",
        )
    details = [
        ErrorDetail(
            param=_printable(".".join(str(part) for part in problem["loc"])) or None,
            message=problem["msg"].removeprefix("Value error, "),
            type=problem["type"],
        )
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    first = details[0]
    message = ": ".join(text for text in (first.param, first.message) if text)
    return WireError(
        status=422,
        code=errors.InvalidField.code,
        message=message,
        param=first.param,
        details=details,
    )


def _printable(param: str) -> str:
    """Return a field's name, which the client made up, fit for JSON and for reading."""
    return param[:MAX_PARAM_CHARS].encode(errors="replace").decode()
