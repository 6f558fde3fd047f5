"""What crosses the wire, as pydantic models."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

SESSION_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
# Those of messages that another program wrote are longer.
MESSAGE_ID_PATTERN = r"^[0-9a-f]{17}([0-9a-f]{12})?$"
# A session id, with or without the place that an earlier page gave.
SESSION_CURSOR_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(@[0-9a-z.+]{1,40})?$"
# Provider, slash and version are all part of Groq's model names.
MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
MAX_PAGE = 1000
# The largest answer of any model that Groq lists.
MAX_COMPLETION_TOKENS = 131_072
# More events than any turn has.
MAX_EVENTS = 10_000_000
# Context for validation: the longest text, in characters.
MAX_CHARS = "max_chars"


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


SessionId = Annotated[str, StringConstraints(pattern=SESSION_ID_PATTERN)]
MessageId = Annotated[str, StringConstraints(pattern=MESSAGE_ID_PATTERN)]
SessionCursor = Annotated[str, StringConstraints(pattern=SESSION_CURSOR_PATTERN)]
ModelName = Annotated[str, StringConstraints(pattern=MODEL_PATTERN)]
# Printable ASCII; quotes, as some clients add them, are part of it.
IdempotencyKey = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,255}$")]
Text = Annotated[
    str,
    # Only a constrained string is checked for lone surrogates.
    StringConstraints(min_length=1),
    AfterValidator(_has_text),
    AfterValidator(_is_not_too_long),
]


def _is_none(value: object) -> bool:
    return value is None


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NoQuery(_Request):
    """The query of a route that takes none."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ChatRequest(_Request):
    """One message to answer; `context` is how many earlier messages the model sees.

    With `stream` the answer comes as server-sent events. `on_disconnect` says what becomes of a
    stream's turn when its client leaves: it goes on and is kept, or is cut there.
    """

    message: Text
    model: ModelName | None = None
    session_id: SessionId | None = None
    system_prompt: Text | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_COMPLETION_TOKENS)
    context: int | None = Field(None, ge=0, le=MAX_PAGE)
    stream: bool = False
    on_disconnect: Literal["continue", "cancel"] = "continue"

    @model_validator(mode="after")
    def _only_a_stream_is_cancelled(self) -> Self:
        if self.on_disconnect == "cancel" and not self.stream:
            raise ValueError("on_disconnect: cancel needs stream: true")
        return self


class ChatAnswer(_Answer):
    """The model's answer; `history_saved` tells whether both messages are kept.

    `turn_id` is the id of the message that was answered; `status` is `incomplete` where the
    answer was cut short.
    """

    message: str
    model: str
    timestamp: str
    tokens_used: int | None
    finish_reason: str
    session_id: str
    message_id: str
    turn_id: str
    history_saved: bool
    status: str | None = Field(None, exclude_if=_is_none)


class TurnPath(_Request):
    """The turn that a path names, by the id of its user's message."""

    turn_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{17}$")]


class ChatHeaders(BaseModel):
    """With a key, a request that is sent again gets the answer of the first."""

    idempotency_key: IdempotencyKey | None = Field(None, alias="Idempotency-Key")


class LastEventId(BaseModel):
    """How far a client has come with a turn's events."""

    last_event_id: int = Field(0, alias="Last-Event-ID", ge=0, le=MAX_EVENTS)


class StopAnswer(_Answer):
    """What became of a turn: ended by this, over before, or still to be ended by its worker."""

    turn_id: str
    status: Literal["stopped", "finished", "stopping"]


class SessionPath(_Request):
    """The session that a path names."""

    session_id: SessionId


class _PageQuery(_Request):
    limit: int = Field(MAX_PAGE, ge=1, le=MAX_PAGE)
    order: Literal["asc", "desc"] = "desc"


class HistoryQuery(_PageQuery):
    """A page of messages: those after or before one; with neither the newest, or the first."""

    after: MessageId | None = None
    before: MessageId | None = None

    @model_validator(mode="after")
    def _one_direction(self) -> Self:
        _refuse_both(self.after, self.before)
        return self


class SessionsQuery(_PageQuery):
    """A page of sessions: those after or before one in the order asked for."""

    after: SessionCursor | None = None
    before: SessionCursor | None = None

    @model_validator(mode="after")
    def _one_direction(self) -> Self:
        _refuse_both(self.after, self.before)
        return self


def _refuse_both(after: str | None, before: str | None) -> None:
    if after is not None and before is not None:
        raise ValueError("after and before exclude each other")


class HistoryMessage(_Answer):
    """One message; `tokens` and `finish_reason` where a completion gave them."""

    id: str
    role: str
    content: str
    model: str | None
    timestamp: str
    tokens: int | None = Field(None, exclude_if=_is_none)
    finish_reason: str | None = Field(None, exclude_if=_is_none)
    status: str | None = Field(None, exclude_if=_is_none)


class HistoryAnswer(_Answer):
    """A page of messages in time order; counts are of the whole session."""

    session_id: str
    messages: list[HistoryMessage]
    message_count: int
    last_message_time: str | None
    has_more: bool
    first_id: str | None
    last_id: str | None


class ClearAnswer(_Answer):
    """That a session is gone."""

    status: Literal["success"] = "success"
    message: str


class SessionsAnswer(_Answer):
    """A page of sessions; `next` goes on behind it where there are more."""

    sessions: list[str]
    total_sessions: int
    has_more: bool
    first_id: str | None
    last_id: str | None
    next: str | None


class SessionAnswer(_Answer):
    """What is known of one session; no expiry where another program left its key without."""

    session_id: str
    message_count: int
    first_message_time: str
    last_message_time: str
    expires_at: str | None
    ttl_seconds: int | None
