"""The types of request fields: patterns, limits and the rules in words."""

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)

SESSION_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
# 17 digits; messages that another program wrote have 29.
MESSAGE_ID_PATTERN = r"^[0-9a-f]{17}([0-9a-f]{12})?$"
# A session id, or the cursor of an earlier page: a session id, `@` and a score.
SESSION_CURSOR_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(@(inf|[0-9][0-9.e+]{0,39}))?$"
# Groq's model names contain a provider, a slash and a version.
# Empty in a form without a choice.
MODEL_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9._:/-]{0,127})?$"
TURN_ID_PATTERN = r"^[0-9a-f]{17}$"
# Printable ASCII. If a client encloses the key in quotes, they are part of the key.
IDEMPOTENCY_KEY_PATTERN = r"^[ -~]{1,255}$"
# What a field must be, for the message of an error, which contains no pattern.
PATTERN_RULES = {
    SESSION_ID_PATTERN: "must have 1 to 128 characters: ASCII letters, digits and . _ : -, the "
    "first a letter or digit",
    MESSAGE_ID_PATTERN: "must be the `id` of a message, `first_id` or `last_id`",
    SESSION_CURSOR_PATTERN: "must be a session id, or `next` of an earlier page",
    MODEL_PATTERN: "must be the id of a model, for example openai/gpt-oss-20b",
    TURN_ID_PATTERN: "must be the `turn_id` of an answer or of a `start` event",
    IDEMPOTENCY_KEY_PATTERN: "must have 1 to 255 printable ASCII characters",
}
SESSION_ID = re.compile(SESSION_ID_PATTERN)
MAX_PAGE = 1000
# The maximum of every model that Groq lists.
MAX_COMPLETION_TOKENS = 131_072
# More events than any attempt at a turn has.
MAX_EVENTS = 10_000_000
# The highest number that a browser represents exactly.
MAX_EVENT_NUMBER = 2**53 - 1
# The OpenAPI document contains the names of the available models instead of this text.
MODELS_PLACEHOLDER = "GROQ_ALLOWED_MODELS"
# Those names and the empty one, which means the default model.
OPTIONAL_MODELS_PLACEHOLDER = "GROQ_ALLOWED_MODELS or empty"
# The maximum length of a text: its key in the validation context, its placeholder in OpenAPI.
MAX_CHARS_PLACEHOLDER = "CHAT_MAX_MESSAGE_CHARS"


def is_session_id(text: str) -> bool:
    """Return whether the API accepts a text as a session id."""
    return SESSION_ID.fullmatch(text) is not None


def _check_not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _check_length(text: str, info: ValidationInfo) -> str:
    limit = (info.context or {}).get(MAX_CHARS_PLACEHOLDER)
    if limit is not None and len(text) > limit:
        raise ValueError(f"must have at most {limit} characters")
    return text


def _as_integer(value: object) -> object:
    """Return a float without a fraction as an integer: JSON has only one type of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _empty_as_none(text: str | None) -> str | None:
    return text or None


SessionId = Annotated[str, StringConstraints(pattern=SESSION_ID_PATTERN)]
MessageId = Annotated[str, StringConstraints(pattern=MESSAGE_ID_PATTERN)]
SessionCursor = Annotated[str, StringConstraints(pattern=SESSION_CURSOR_PATTERN)]
ModelName = Annotated[
    str,
    StringConstraints(pattern=MODEL_PATTERN),
    WithJsonSchema(
        {"type": "string", "pattern": MODEL_PATTERN, "enum": OPTIONAL_MODELS_PLACEHOLDER}
    ),
]
OptionalModelName = Annotated[ModelName | None, AfterValidator(_empty_as_none)]
TokenCount = Annotated[int, Field(ge=1, le=MAX_COMPLETION_TOKENS), BeforeValidator(_as_integer)]
MessageCount = Annotated[int, Field(ge=0, le=MAX_PAGE), BeforeValidator(_as_integer)]
IdempotencyKey = Annotated[str, StringConstraints(pattern=IDEMPOTENCY_KEY_PATTERN)]
TurnId = Annotated[str, StringConstraints(pattern=TURN_ID_PATTERN)]
Text = Annotated[
    str,
    # pydantic rejects lone surrogates only in a string with constraints.
    StringConstraints(min_length=1),
    AfterValidator(_check_not_blank),
    AfterValidator(_check_length),
    WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": MAX_CHARS_PLACEHOLDER, "pattern": r"\S"}
    ),
]
