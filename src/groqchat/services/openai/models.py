"""The request and response models of the OpenAI-compatible endpoints.

The models declare only the fields that the service uses or documents.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from groqchat.fields import MODELS_PLACEHOLDER, IdempotencyKey, SessionId
from groqchat.models import ResponseModel

# Documents the request in OpenAPI. Groq validates it.
REQUEST_SCHEMA: dict[str, Any] = {
    "required": ["model", "messages"],
    "properties": {
        "model": {"type": "string", "minLength": 1, "enum": MODELS_PLACEHOLDER},
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


class OpenAIHeaders(BaseModel):
    """The headers of a completion request."""

    session_id: SessionId | None = Field(
        None,
        alias="X-Session-Id",
        description="Adds the earlier messages of this session to the request, and stores the new "
        "messages and the answer.",
    )
    idempotency_key: IdempotencyKey | None = Field(
        None,
        alias="Idempotency-Key",
        description="For one hour, every request with this key, the same body and the same session "
        "returns the response to the first.",
    )


class ChatCompletionRequest(BaseModel):
    """A completion request in OpenAI's format. Other fields are forwarded to Groq unchanged."""

    model_config = ConfigDict(extra="allow", frozen=True, json_schema_extra=REQUEST_SCHEMA)

    model: str | None = None
    messages: Any = None
    stream: bool | None = None


class ChatCompletionResponse(ResponseModel):
    """A completion in OpenAI's format, as Groq returns it."""

    model_config = ConfigDict(extra="allow")


class ModelPath(BaseModel):
    """The path of a model. Its id may contain slashes, also percent-encoded."""

    model: str = Field(min_length=1)


class ModelResponse(ResponseModel):
    """A model in OpenAI's format, with the further fields that Groq describes."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Any = "model"
    created: Any = 0
    owned_by: Any = ""


class ModelListResponse(ResponseModel):
    """The available models in OpenAI's format."""

    object: Literal["list"] = "list"
    data: list[ModelResponse]


class OpenAIErrorResponse(ResponseModel):
    """An error that Groq returned, or an error of the service, which has more fields."""

    error: dict[str, Any]
