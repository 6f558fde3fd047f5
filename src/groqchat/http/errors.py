"""Error responses: the one error shape, and the status of each error class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from groqchat import errors
from groqchat.http.error_models import ErrorDetail, ErrorEvent, ErrorInfo, ErrorResponse
from groqchat.http.request_id import request_id
from groqchat.validation_messages import message_of

# Looked up along the class hierarchy of the error; any other class is a 500.
STATUS: dict[type[errors.GroqChatError], int] = {
    errors.HostNotAllowed: 421,
    errors.CrossSiteRequest: 403,
    errors.InvalidField: 422,
    errors.SessionNotFound: 404,
    errors.ModelNotFound: 404,
    errors.IdempotencyKeyReused: 409,
    errors.SessionCleared: 409,
    errors.TurnNotFound: 404,
    errors.TurnLost: 502,
    errors.DocsUnavailable: 503,
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
# Every 429 and 503 has a Retry-After header, even if the cause did not specify a delay.
DEFAULT_RETRY_AFTER_S = 1
# Beyond this number, the invalid fields are not listed: that would cost time and help nobody.
MAX_DETAILS = 50
# Paths of unknown fields are truncated to this length; those of known fields are shorter.
MAX_PARAM_CHARS = 64
EMPTY_NAME = '""'
# nginx logs this status for a client that has disconnected; nobody receives it.
CLIENT_CLOSED_REQUEST = 499
# A browser must not run stored text as a script or show it as HTML.
CONTENT_TYPE_OPTIONS = "X-Content-Type-Options"
NOSNIFF = "nosniff"
RETRY_AFTER_STATUS = frozenset({429, 503})

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "invalid_request_error",
    502: "upstream_error",
    503: "unavailable_error",
    504: "upstream_error",
}
_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    414: "uri_too_long",
    431: "headers_too_large",
}
_MESSAGES = {
    404: "This path does not exist.",
    405: "This path does not support this method.",
    408: "The request did not arrive in time.",
    413: "The request body is too large.",
    414: "The request line is too long. Send long messages in the body of POST /chat.",
    431: "The headers of the request are too large.",
}


class RequestError(Exception):
    """An error that is known as an API error already: an invalid request, or a failed turn."""

    def __init__(self, error: "ApiError") -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiError:
    """An error as clients see it; with `closes`, its response closes the connection."""

    status: int
    code: str
    message: str
    param: str | None = None
    details: Sequence[ErrorDetail] = ()
    retry_after_s: float | None = None
    closes: bool = False

    @property
    def type(self) -> str:
        """The general category of the status."""
        kind = "server_error" if self.is_server_error else "invalid_request_error"
        return _TYPES.get(self.status, kind)

    @property
    def is_server_error(self) -> bool:
        """Whether the status is a 5xx."""
        return self.status >= HTTPStatus.INTERNAL_SERVER_ERROR

    def body(self) -> dict[str, Any]:
        """Return the JSON body, with the id of the current request."""
        return ErrorResponse(error=self.info()).model_dump()

    def info(self) -> ErrorInfo:
        """Return the error object, with the id of the current request."""
        return ErrorInfo(
            message=self.message,
            type=self.type,
            code=self.code,
            param=self.param,
            request_id=request_id.get(),
            details=list(self.details) or None,
        )

    def headers(self) -> dict[str, str]:
        """Return the headers that every error or its status requires."""
        if self.status not in RETRY_AFTER_STATUS:
            return {CONTENT_TYPE_OPTIONS: NOSNIFF}
        seconds = math.ceil(self.retry_after_s or DEFAULT_RETRY_AFTER_S)
        return {CONTENT_TYPE_OPTIONS: NOSNIFF, "Retry-After": str(max(seconds, 1))}

    def response(self) -> web.Response:
        """Return the complete response."""
        response = web.Response(
            status=self.status,
            body=orjson.dumps(self.body()),
            content_type="application/json",
            headers=self.headers(),
        )
        if self.closes:
            response.force_close()
        return response


UNSUPPORTED_ENCODING = ApiError(
    status=415,
    code="unsupported_media_type",
    message="The content encoding of the body is not supported: use gzip, deflate or none.",
)
UNSUPPORTED_TRANSFER_ENCODING = ApiError(
    status=501,
    code="not_implemented",
    message="The only supported transfer encoding is chunked.",
)


def to_api_error(error: Exception) -> ApiError:
    """Return the API error of an exception; a plain 500 for an unknown class."""
    if isinstance(error, RequestError):
        return error.error
    if isinstance(error, errors.GroqChatError):
        status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
        return ApiError(
            status=status,
            code=error.code,
            message=error.message,
            param=error.param,
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, web.HTTPException):
        return api_error_for_status(error.status)
    return ApiError(
        status=500,
        code=errors.GroqChatError.code,
        message=errors.GroqChatError.default_message,
    )


def error_event_data(error: Exception) -> dict[str, Any]:
    """Return the data of an `error` event: error object, status and delay before a retry."""
    api_error = to_api_error(error)
    event = ErrorEvent(
        error=api_error.info(), status=api_error.status, retry_after_s=api_error.retry_after_s
    )
    return event.model_dump()


def error_from_event(data: dict[str, Any]) -> RequestError:
    """Return the error in the data of an `error` event."""
    error = data["error"]
    return RequestError(
        ApiError(
            status=data["status"],
            code=error["code"],
            message=error["message"],
            param=error["param"],
            retry_after_s=data["retry_after_s"],
        )
    )


def api_error_for_status(status: int) -> ApiError:
    """Return the error for an HTTP status that no exception of the service caused."""
    phrase = HTTPStatus(status).phrase
    return ApiError(
        status=status,
        code=_CODES.get(status, phrase.lower().replace(" ", "_")),
        message=_MESSAGES.get(status, f"{phrase}."),
    )


def validation_error(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """Return an error that names the invalid fields, if there are at most MAX_DETAILS.

    It never contains the invalid values.
    """
    if error.error_count() > MAX_DETAILS:
        return ApiError(
            status=422,
            code=errors.InvalidField.code,
            message=f"More than {MAX_DETAILS} fields are invalid.",
        )
    details = [
        ErrorDetail(
            param=_param_of(problem["loc"]),
            message=message_of(problem, model.model_fields),
            type=problem["type"],
        )
        for problem in error.errors(include_url=False, include_input=False)
    ]
    first = details[0]
    if first.param is None:
        message = f"The body {first.message}."
    else:
        message = about_field(first.param, first.message)
    return ApiError(
        status=422,
        code=errors.InvalidField.code,
        message=message,
        param=first.param,
        details=details,
    )


def about_field(name: str, message: str) -> str:
    """Return a message about a field, whose name a client may have chosen."""
    return f"{name or EMPTY_NAME}: {message}"


def reject(status: int, code: str, message: str, *, param: str | None = None) -> NoReturn:
    """Raise the error of an invalid request."""
    error = ApiError(status=status, code=code, message=message, param=param)
    raise RequestError(error) from None


def _param_of(location: tuple[int | str, ...]) -> str | None:
    """Return the path of a field, shortened and valid UTF-8; None for the whole body."""
    if not location:
        return None
    path = ".".join(str(part) for part in location)
    return path[:MAX_PARAM_CHARS].encode(errors="replace").decode()
