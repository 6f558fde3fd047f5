"""The models of error responses and error events."""

from pydantic import Field

from groqchat.models import ResponseModel, example, is_none


class ErrorDetail(ResponseModel):
    """One invalid field of a request; `type` is pydantic's name of the problem.

    `param` is null if the request as a whole is invalid.
    """

    param: str | None
    message: str
    type: str


class ErrorInfo(ResponseModel):
    """An error: `code` identifies it for programs, `message` explains it to people.

    `type` is the category of the status. `param` names the first invalid field, and `details` lists
    all of them.
    `request_id` is also in the service's log.
    """

    message: str
    type: str
    code: str
    param: str | None
    request_id: str
    details: list[ErrorDetail] | None = Field(None, exclude_if=is_none)


class ErrorResponse(ResponseModel):
    """The body of an error response."""

    model_config = example(
        error={
            "message": "The session does not exist.",
            "type": "not_found_error",
            "code": "session_not_found",
            "param": None,
            "request_id": "04f20f0d0d7c431089d4e8317d53903a",
        }
    )

    error: ErrorInfo


class ErrorEvent(ErrorResponse):
    """The data of an `error` event, which is the last event of a stream.

    `status` and `retry_after_s` are the status and the `Retry-After` header that an error response
    would have.
    """

    status: int
    retry_after_s: float | None = None
