"""The models of error responses and error events."""

from pydantic import Field

from groqchat.models import ResponseModel, example, is_none


class ErrorDetail(ResponseModel):
    """One invalid field of a request; `type` is the kind of the problem."""

    param: str | None
    message: str
    type: str


class ErrorInfo(ResponseModel):
    """An error: `code` is stable, for programs; `message` is for people.

    `param` names the invalid field. `details` lists all invalid fields, if there are any.
    `request_id` is also in the log of the service.
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
    """The data of an `error` event, the last event of a failed turn.

    `status` and `retry_after_s` (in seconds) are those of an error response.
    """

    status: int
    retry_after_s: float | None = None
