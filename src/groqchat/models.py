"""What crosses the wire, as pydantic models."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)

SESSION_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
# Those of messages that another program wrote are longer.
MESSAGE_ID_PATTERN = r"^[0-9a-f]{17}([0-9a-f]{12})?$"
# A session id, with or without the place that an earlier page gave.
SESSION_CURSOR_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(@(inf|[0-9][0-9.e+]{0,39}))?$"
# Provider, slash and version are all part of Groq's model names.
MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
MAX_PAGE = 1000
# The largest answer of any model that Groq lists.
MAX_COMPLETION_TOKENS = 131_072
# More events than any turn has.
MAX_EVENTS = 10_000_000
# In the description of the API: where the names of the models that may be used stand.
MODELS = "GROQ_ALLOWED_MODELS"
# Context for validation: the longest text, in characters.
MAX_CHARS = "CHAT_MAX_MESSAGE_CHARS"


def is_session_id(text: str) -> bool:
    """Tell whether the API can name a session so."""
    return re.fullmatch(SESSION_ID_PATTERN, text) is not None


def _has_text(text: str) -> str:
    if not text.strip():
        raise ValueError("must hold more than white space")
    return text


def _is_not_too_long(text: str, info: ValidationInfo) -> str:
    limit = (info.context or {}).get(MAX_CHARS)
    if limit is not None and len(text) > limit:
        raise ValueError(f"must not be longer than {limit} characters")
    return text


def _as_whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


SessionId = Annotated[str, StringConstraints(pattern=SESSION_ID_PATTERN)]
MessageId = Annotated[str, StringConstraints(pattern=MESSAGE_ID_PATTERN)]
SessionCursor = Annotated[str, StringConstraints(pattern=SESSION_CURSOR_PATTERN)]
ModelName = Annotated[
    str,
    StringConstraints(pattern=MODEL_PATTERN),
    WithJsonSchema({"type": "string", "pattern": MODEL_PATTERN, "enum": MODELS}),
]
# As JSON has it: 5.0 is as whole a number as 5.
TokenCount = Annotated[int, Field(ge=1, le=MAX_COMPLETION_TOKENS), BeforeValidator(_as_whole)]
MessageCount = Annotated[int, Field(ge=0, le=MAX_PAGE), BeforeValidator(_as_whole)]
# Printable ASCII; quotes, as some clients add them, are part of it.
IdempotencyKey = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,255}$")]
Text = Annotated[
    str,
    # Only a constrained string is checked for lone surrogates.
    StringConstraints(min_length=1),
    AfterValidator(_has_text),
    AfterValidator(_is_not_too_long),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_CHARS, "pattern": r"\S"}),
]


def is_none(value: object) -> bool:
    """Tell whether a field has nothing to say."""
    return value is None


def example(**fields: Any) -> ConfigDict:
    """Return a configuration with an example for the description of the API."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Request(BaseModel):
    """What a client sends; a field that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NoQuery(Request):
    """The query of a route that takes none."""


class Answer(BaseModel):
    """What a client is sent."""

    model_config = ConfigDict(frozen=True)


class ChatRequest(Request):
    """One message to answer; `context` is how many earlier messages the model sees.

    With `stream` the answer comes as server-sent events. `on_disconnect` says what becomes of the
    turn when its client leaves: it goes on and is kept, or is cut there.
    """

    model_config = example(message="What is Python?", session_id="user-123-abc")

    message: Text
    model: ModelName | None = None
    session_id: SessionId | None = None
    system_prompt: Text | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_completion_tokens: TokenCount | None = None
    context: MessageCount | None = None
    stream: bool = False
    on_disconnect: Literal["continue", "cancel"] = "continue"


class ChatAnswer(Answer):
    """The model's answer; `history_saved` tells whether both messages are kept.

    `turn_id` is the id of the message that was answered; `status` is `incomplete` where the
    answer was cut short.
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


class StartEvent(Answer):
    """The first event of a stream: by `turn_id` it can be followed and stopped."""

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


class DeltaEvent(Answer):
    """A piece of the answer."""

    model_config = example(text="A programming ")

    text: str


class TurnPath(Request):
    """The turn that a path names, by the id of its user's message."""

    turn_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{17}$")]


class ChatHeaders(BaseModel):
    """With a key, a request that is sent again gets the answer of the first."""

    idempotency_key: IdempotencyKey | None = Field(None, alias="Idempotency-Key")


class ModelInfo(Answer):
    """A model as Groq describes it; sizes in tokens."""

    id: str
    owned_by: str | None = None
    active: bool | None = None
    context_window: int | None = None
    max_completion_tokens: int | None = None


class ModelsAnswer(Answer):
    """The models that may be used, and when Groq listed them."""

    models: list[ModelInfo]
    default_model: str
    refreshed_at: str | None


class LastEventId(BaseModel):
    """How far a client has come with a turn's events."""

    last_event_id: int = Field(0, alias="Last-Event-ID", ge=0, le=MAX_EVENTS)


class StopAnswer(Answer):
    """What became of a turn: ended by this, over before, or still to be ended by its worker."""

    turn_id: str
    status: Literal["stopped", "finished", "stopping"]


class HealthAnswer(Answer):
    """That the process lives."""

    status: Literal["ok"] = "ok"


class ReadyAnswer(Answer):
    """That what the service needs is there."""

    status: Literal["ok"] = "ok"
    checks: dict[str, str]


class SessionPath(Request):
    """The session that a path names."""

    session_id: SessionId


class _PageQuery(Request):
    limit: int = Field(MAX_PAGE, ge=1, le=MAX_PAGE)
    order: Literal["asc", "desc"] = "desc"


class HistoryQuery(_PageQuery):
    """A page of messages: those after one, before one, or between two; else an end's."""

    after: MessageId | None = None
    before: MessageId | None = None


class SessionsQuery(_PageQuery):
    """A page of sessions: those after or before one in the order asked for."""

    after: SessionCursor | None = None
    before: SessionCursor | None = None


class HistoryMessage(Answer):
    """One message; `tokens` and `finish_reason` where a completion gave them.

    `extra` holds what else a client of the OpenAI-compatible endpoint sent with it.
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


class HistoryAnswer(Answer):
    """A page of messages in time order; counts are of the whole session."""

    session_id: str
    messages: list[HistoryMessage]
    message_count: int
    last_message_time: str | None
    has_more: bool
    first_id: str | None
    last_id: str | None


class ClearAnswer(Answer):
    """That a session is gone."""

    status: Literal["success"] = "success"
    message: str


class SessionsAnswer(Answer):
    """A page of sessions; `next` goes on behind it where there are more."""

    sessions: list[str]
    total_sessions: int
    has_more: bool
    first_id: str | None
    last_id: str | None
    next: str | None


class SessionAnswer(Answer):
    """What is known of one session; no expiry where another program left its key without."""

    session_id: str
    message_count: int
    first_message_time: str
    last_message_time: str
    expires_at: str | None
    ttl_seconds: int | None
