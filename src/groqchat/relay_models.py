"""Groq's own wire format, as far as it is looked at or described, as pydantic models."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from groqchat.models import MODELS, Answer, SessionId

# Groq judges what it is sent; this only says what that is.
DESCRIPTION: dict[str, Any] = {
    "required": ["model", "messages"],
    "properties": {
        "model": {"type": "string", "minLength": 1, "enum": MODELS},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"enum": ["system", "user", "assistant", "tool"]},
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "array", "items": {"type": "object"}},
                            {"type": "null"},
                        ]
                    },
                },
            },
        },
        "stream": {"type": ["boolean", "null"]},
    },
    "examples": [
        {
            "model": "openai/gpt-oss-20b",
            "messages": [{"role": "user", "content": "What is Python?"}],
        }
    ],
}


class RelayHeaders(BaseModel):
    """With a session, what was said before is put in front, and what is new is kept."""

    session_id: SessionId | None = Field(None, alias="X-Session-Id")


class RelayRequest(BaseModel):
    """A completion as Groq takes it; what is not looked at here is passed on as it is."""

    model_config = ConfigDict(extra="allow", frozen=True, json_schema_extra=DESCRIPTION)

    model: str | None = None
    messages: Any = None
    stream: bool | None = None


class RelayedCompletion(Answer):
    """A completion as Groq gives it."""

    model_config = ConfigDict(extra="allow")


class RelayedModels(Answer):
    """A list of models as Groq gives it."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]


class GroqErrorAnswer(Answer):
    """An error of Groq's, passed on, or one of ours, which has more fields."""

    error: dict[str, Any]
