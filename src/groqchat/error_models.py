"""Every error on the wire, as pydantic models."""

from pydantic import Field

from groqchat.models import Answer, example, is_none


class ErrorDetail(Answer):
    """One thing that is wrong with a request."""

    param: str | None
    message: str
    type: str


class ErrorInfo(Answer):
    """What went wrong: `code` for programs, `message` for people, `param` the field at fault."""

    message: str
    type: str
    code: str
    param: str | None
    request_id: str
    details: list[ErrorDetail] | None = Field(None, exclude_if=is_none)


class ErrorAnswer(Answer):
    """Every error, whatever its cause."""

    model_config = example(
        error={
            "message": "There is no such session.",
            "type": "not_found_error",
            "code": "session_not_found",
            "param": None,
            "request_id": "04f20f0d0d7c431089d4e8317d53903a",
        }
    )

    error: ErrorInfo


class ErrorEvent(ErrorAnswer):
    """The last event of a stream that failed, with the status that would have gone with it."""

    status: int
    retry_after_s: float | None = None
