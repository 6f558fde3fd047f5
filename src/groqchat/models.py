"""The request and response models of the API."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from groqchat.fields import (
    MAX_EVENT_NUMBER,
    MAX_PAGE,
    IdempotencyKey,
    MessageCount,
    MessageId,
    OptionalModelName,
    SessionCursor,
    SessionId,
    Text,
    TokenCount,
    TurnId,
)


def is_none(value: object) -> bool:
    """Return whether a field is absent from the JSON."""
    return value is None


def example(**fields: Any) -> ConfigDict:
    """Return a model configuration with an example for the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class RequestModel(BaseModel):
    """Base of the request models; unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NoQuery(RequestModel):
    """The query of a route without query parameters."""


class ResponseModel(BaseModel):
    """Base of the response models."""

    model_config = ConfigDict(frozen=True)


class ChatRequest(RequestModel):
    """A user message and the options of its answer. Unknown fields are rejected with 422."""

    model_config = example(message="What is Python?", session_id="user-123-abc")

    message: Text
    model: OptionalModelName = Field(
        None, description="Default: the service's default model, also if it is empty."
    )
    session_id: SessionId | None = Field(None, description="Default: a new session.")
    system_prompt: Text | None = Field(None, description="Applies to this answer. Not stored.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_completion_tokens: TokenCount | None = None
    context: MessageCount | None = Field(
        None, description="The maximum number of earlier messages that the model receives."
    )
    stream: bool = Field(default=False, description="Return the answer as server-sent events.")
    on_disconnect: Literal["continue", "cancel"] = Field(
        "continue",
        description="If the client disconnects, `continue` completes and stores the turn, "
        "`cancel` stops it.",
    )


class ChatResponse(ResponseModel):
    """The model's answer to a user message.

    `turn_id` is also the id of the user message, `message_id` is the id of the answer.
    `tokens_used` counts prompt and answer, null if Groq did not report it. `finish_reason` is
    `stopped` if a client stopped the turn, else Groq's, such as `stop` or `length`.
    `history_saved` is false unless Redis confirmed both messages. `status` is `incomplete` if the
    turn was stopped, else absent.
    """

    model_config = example(
        message="A programming language.",
        model="openai/gpt-oss-20b",
        timestamp="2026-11-22T16:30:16.392466+00:00",
        tokens_used=22,
        finish_reason="stop",
        session_id="user-123-abc",
        message_id="660dffe0b531216d6",
        turn_id="660dffe0b39799a87",
        history_saved=True,
    )

    message: str
    model: str
    timestamp: str
    tokens_used: int | None
    finish_reason: str
    session_id: str
    message_id: str
    turn_id: str
    history_saved: bool
    status: str | None = Field(None, exclude_if=is_none)


class StartEvent(ResponseModel):
    """The data of the `start` event; with `turn_id`, a client can resume or stop the turn."""

    model_config = example(
        turn_id="660dffe0b39799a87",
        session_id="user-123-abc",
        model="openai/gpt-oss-20b",
        timestamp="2026-11-22T16:30:16.385913+00:00",
    )

    turn_id: str
    session_id: str
    model: str | None
    timestamp: str


class DeltaEvent(ResponseModel):
    """The data of a `delta` event: the next part of the answer's text."""

    model_config = example(text="A programming ")

    text: str


class TurnPath(RequestModel):
    """The path parameter of the routes of one turn."""

    turn_id: TurnId


class ChatHeaders(BaseModel):
    """The headers of a chat request."""

    idempotency_key: IdempotencyKey | None = Field(
        None,
        alias="Idempotency-Key",
        description="For one hour, every request with this key returns the answer of the first.",
    )


def _none_if_invalid(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


# For a field whose value comes from another server: an unexpected type becomes null.
Lenient = WrapValidator(_none_if_invalid)


class ModelInfo(ResponseModel):
    """A model as Groq describes it; the last two fields are numbers of tokens."""

    id: str
    owned_by: Annotated[str | None, Lenient] = None
    active: Annotated[bool | None, Lenient] = None
    context_window: Annotated[int | None, Lenient] = None
    max_completion_tokens: Annotated[int | None, Lenient] = None


class ModelsResponse(ResponseModel):
    """The available models, the default model, and when Groq returned this list."""

    models: list[ModelInfo]
    default_model: str
    refreshed_at: str | None


class LastEventId(BaseModel):
    """The header with which a client resumes a stream."""

    last_event_id: int = Field(
        0, alias="Last-Event-ID", ge=0, le=MAX_EVENT_NUMBER, description="The last event received."
    )


class StopResponse(ResponseModel):
    """The state of a turn after a stop request.

    `finished`: the turn was over before. `stopping`: its worker has not confirmed the stop yet.
    """

    turn_id: str
    status: Literal["stopped", "finished", "stopping"]


class HealthResponse(ResponseModel):
    """The process runs."""

    status: Literal["ok"] = "ok"


class ReadyResponse(ResponseModel):
    """The service can answer messages; `checks` contains the state of each dependency.

    `groq_checked_at` is the time of the last request for Groq's list of models.
    """

    status: Literal["ok"] = "ok"
    checks: dict[str, str]
    groq_checked_at: str | None


class SessionPath(RequestModel):
    """The path parameter of the routes of one session."""

    session_id: SessionId


class _PageQuery(RequestModel):
    limit: int = Field(MAX_PAGE, ge=1, le=MAX_PAGE, description="The maximum number of items.")
    order: Literal["asc", "desc"] = Field(
        "desc", description="Start with the latest items (`desc`) or with the earliest (`asc`)."
    )


class HistoryQuery(_PageQuery):
    """The query of a page of messages; `order` matters only without `after` and `before`."""

    after: MessageId | None = Field(None, description="Return the messages after this id.")
    before: MessageId | None = Field(
        None, description="Return the messages before this id; with `after`, those between both."
    )


class SessionsQuery(_PageQuery):
    """The query of a page of sessions, in the order of their last activity."""

    after: SessionCursor | None = Field(
        None, description="Return the sessions after this session id or cursor (`next`)."
    )
    before: SessionCursor | None = Field(
        None, description="Return the sessions before it; with `after`, those between both."
    )


class HistoryMessage(ResponseModel):
    """One message of a session; `tokens`, `finish_reason`, `status` and `extra` can be absent.

    Answers have `tokens`, the tokens of the whole turn, and `finish_reason`. `status` is
    `incomplete` if the answer was stopped or failed. `extra` contains further fields of a message
    from the OpenAI-compatible endpoint, such as `tool_calls`.
    """

    id: str
    role: str
    content: str
    model: str | None
    timestamp: str
    tokens: int | None = Field(None, exclude_if=is_none)
    finish_reason: str | None = Field(None, exclude_if=is_none)
    status: str | None = Field(None, exclude_if=is_none)
    extra: dict[str, Any] | None = Field(None, exclude_if=is_none)


class HistoryResponse(ResponseModel):
    """A page of messages in time order; count and last time describe the whole session."""

    session_id: str
    messages: list[HistoryMessage]
    message_count: int
    last_message_time: str | None
    has_more: bool
    first_id: str | None
    last_id: str | None


class ClearResponse(ResponseModel):
    """The confirmation that a session is deleted."""

    status: Literal["success"] = "success"
    message: str


class SessionsResponse(ResponseModel):
    """A page of session ids; `total_sessions` counts all live sessions.

    `next` is the cursor of the next page, null at the end.
    """

    sessions: list[str]
    total_sessions: int
    has_more: bool
    first_id: str | None
    last_id: str | None
    next: str | None


class SessionResponse(ResponseModel):
    """Count and times of a session; the last two are null if another program set no TTL."""

    session_id: str
    message_count: int
    first_message_time: str
    last_message_time: str
    expires_at: str | None
    ttl_seconds: int | None
