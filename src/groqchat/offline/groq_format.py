"""Groq's format of requests, completions, chunks, models, errors and headers.

Source: Groq's API reference for chat completions, models, errors and rate limits.
"""

import re
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Below Python 3.12, pydantic rejects the TypedDict of the standard library.
from typing_extensions import TypedDict

from groqchat.offline.answers import MockAnswer, last_user_text

FINGERPRINT = "fp_offline"
# The models of the mock Groq server and their owners.
OWNERS = {
    "groq/compound": "Groq",
    "llama-3.1-8b-instant": "Meta",
    "llama-3.3-70b-versatile": "Meta",
    "meta-llama/llama-4-scout-17b-16e-instruct": "Meta",
    "openai/gpt-oss-120b": "OpenAI",
    "openai/gpt-oss-20b": "OpenAI",
    "qwen/qwen3-32b": "Alibaba Cloud",
}
CONTEXT_WINDOW = 131_072
MAX_COMPLETION_TOKENS = 131_072
MAX_STOPS = 4

# The limits of a small plan. The mock Groq server never enforces them.
RATE_LIMIT_HEADERS = {
    "x-ratelimit-limit-requests": "14400",
    "x-ratelimit-limit-tokens": "18000",
    "x-ratelimit-remaining-requests": "14399",
    "x-ratelimit-remaining-tokens": "17999",
    "x-ratelimit-reset-requests": "6s",
    "x-ratelimit-reset-tokens": "3.3ms",
}

_ERRORS: dict[int, tuple[str, str, str]] = {
    400: ("invalid_request_error", "invalid_request", "'messages' : one of its values is invalid"),
    401: ("invalid_request_error", "invalid_api_key", "Invalid API Key"),
    403: ("permissions_error", "permissions_error", "This key may not use this model"),
    404: ("invalid_request_error", "model_not_found", "The model does not exist"),
    413: ("tokens", "rate_limit_exceeded", "Request too large for model"),
    422: ("invalid_request_error", "unprocessable", "The request could not be processed"),
    429: (
        "tokens",
        "rate_limit_exceeded",
        "Rate limit reached for model in organization org_01mockgroqserver on tokens per minute",
    ),
    498: ("invalid_request_error", "capacity_exceeded", "Flex tier capacity exceeded"),
}


class RequestMessage(TypedDict):
    """A message of a request; other fields are accepted and ignored."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc] # as pydantic documents it

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: NotRequired[str | list[dict[str, Any]] | None]


class _Function(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    parameters: dict[str, Any] | None = None


class _Tool(BaseModel):
    """An item of `tools`, or a `tool_choice` that names a tool."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: _Function


class _JsonSchema(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)

    name: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class _ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None

    @model_validator(mode="after")
    def _has_a_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is required")
        return self


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class ChatCompletionRequest(BaseModel):
    """A completion request; other fields are accepted and ignored."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[RequestMessage], Field(min_length=1)]
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: Literal[1] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_COMPLETION_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_COMPLETION_TOKENS)
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Tool | None = None
    response_format: _ResponseFormat | None = None
    stream_options: _StreamOptions | None = None

    @model_validator(mode="after")
    def _tool_choice_exists(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice requires tools")
        if isinstance(self.tool_choice, _Tool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice names an unknown tool")
        return self

    @property
    def tool(self) -> _Function | None:
        """The tool that the answer calls.

        With `required`, the first one that was not called since the last user message, else the
        last one, so that an agent reaches each of them and ends. With `auto`, a tool that the last
        user message names and that was not called since.
        """
        functions = [tool.function for tool in self.tools or ()]
        if isinstance(self.tool_choice, _Tool):
            name = self.tool_choice.function.name
            return next(function for function in functions if function.name == name)
        if not functions or self.tool_choice == "none":
            return None
        called = self._called_tools()
        left = [function for function in functions if function.name not in called]
        if self.tool_choice == "required":
            return left[0] if left else functions[-1]
        words = set(re.findall(r"[\w-]+", last_user_text(self.messages)))
        return next((function for function in left if function.name in words), None)

    def _called_tools(self) -> set[str]:
        """Return the names of the tools that were called since the last user message."""
        names: set[str] = set()
        for message in reversed(self.messages):
            if message["role"] == "user":
                break
            calls: Any = message.get("tool_calls")
            names.update(call["function"]["name"] for call in calls or ())
        return names

    @property
    def wants_json(self) -> bool:
        """Whether the answer must be a JSON object."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the answer, None if there is none."""
        wanted = self.response_format and self.response_format.json_schema
        return wanted.schema_ if wanted else None

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer and are not a part of it."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def includes_usage(self) -> bool:
        """Whether the last chunk of a stream contains the usage and no choice."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        """The maximum length of the answer; `max_tokens` is the deprecated name."""
        return self.max_completion_tokens or self.max_tokens


def completion(answer: MockAnswer, model: str) -> dict[str, Any]:
    """Return a completion."""
    return {
        **_head(answer, model, "chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": _message(answer),
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
        ],
        "usage": answer.usage,
        "usage_breakdown": None,
        "x_groq": {"id": _request_id(answer)},
        "service_tier": "on_demand",
    }


def chunks(answer: MockAnswer, model: str, *, includes_usage: bool = False) -> list[dict[str, Any]]:
    """Return the chunks of a streamed completion: role, text, finish reason with usage.

    With `includes_usage`, a chunk with the usage and without a choice follows.
    """
    request = {"id": _request_id(answer)}
    usage = {**_head(answer, model, "chat.completion.chunk"), "choices": [], "usage": answer.usage}
    return [
        {
            **_chunk(answer, model, {"role": "assistant", "content": ""}),
            "x_groq": request,
        },
        *(_chunk(answer, model, {"content": text}) for text in answer.chunks),
        *(_chunk(answer, model, {"tool_calls": [part]}) for part in _tool_call_parts(answer)),
        {
            **_chunk(answer, model, {}, finish_reason=answer.finish_reason),
            "x_groq": {**request, "usage": answer.usage},
        },
        *([usage] if includes_usage else []),
    ]


def _message(answer: MockAnswer) -> dict[str, Any]:
    if answer.tool_calls:
        return {"role": "assistant", "tool_calls": list(answer.tool_calls)}
    return {"role": "assistant", "content": answer.text}


def _tool_call_parts(answer: MockAnswer) -> Iterator[dict[str, Any]]:
    """Yield the tool calls as a stream contains them: the name, then the arguments in halves."""
    for index, call in enumerate(answer.tool_calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        yield {"index": index, **call, "function": {"name": name, "arguments": ""}}
        middle = len(arguments) // 2
        for half in (arguments[:middle], arguments[middle:]):
            yield {"index": index, "function": {"arguments": half}}


def models() -> dict[str, Any]:
    """Return the list of models."""
    return {"object": "list", "data": [model(name) for name in OWNERS]}


def model(name: str) -> dict[str, Any]:
    """Return the description of a model that exists."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": OWNERS[name],
        "active": True,
        "context_window": CONTEXT_WINDOW,
        "public_apps": None,
        "max_completion_tokens": MAX_COMPLETION_TOKENS,
    }


def unknown_model(name: str) -> dict[str, Any]:
    """Return the body of the error for a model that does not exist."""
    return error(404, f"The model `{name}` does not exist or you do not have access to it.")


def unknown_url(method: str, path: str) -> dict[str, Any]:
    """Return the body of the error for a path that does not exist."""
    text = f"Unknown request URL: {method} {path}. Please check the URL for typos."
    return {"error": {"message": text, "type": "invalid_request_error", "code": "unknown_url"}}


def error(status: int, message: str | None = None) -> dict[str, Any]:
    """Return the body of an error response."""
    kind, code, text = _ERRORS.get(
        status, ("internal_server_error", "internal_server_error", "Internal Server Error")
    )
    return {"error": {"message": message or text, "type": kind, "code": code}}


def _head(answer: MockAnswer, model: str, kind: str) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


def _chunk(
    answer: MockAnswer, model: str, delta: dict[str, Any], finish_reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**_head(answer, model, "chat.completion.chunk"), "choices": [choice]}


def _request_id(answer: MockAnswer) -> str:
    return answer.id.replace("chatcmpl-", "req_")
