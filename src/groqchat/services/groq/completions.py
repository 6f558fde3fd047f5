"""Chat completions: the prompt that Groq receives, and the parsers of its responses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from groqchat.errors import CompletionError, CompletionRejected, CompletionUnavailable
from groqchat.lenient_json import loads
from groqchat.sse import DataParser
from groqchat.storage.messages import PromptMessage

# Events contain a few tokens, so a longer one is an error, and it must not fill the memory.
MAX_EVENT_BYTES = 1024 * 1024
# More tokens than any conversation has, and an integer that all JSON parsers represent exactly.
MAX_TOKENS = 2**53
MAX_CODE_CHARS = 64
# Models make a few calls at once, and OpenAI's limit is 128.
MAX_TOOL_CALLS = 1024
DONE = b"[DONE]"


@dataclass(slots=True, kw_only=True)
class Prompt:
    """The input of the model: messages in order, and the sampling options."""

    model: str
    messages: Sequence[PromptMessage]
    system_prompt: str | None = None
    options: dict[str, float | int] = field(default_factory=dict)

    def body(self, **fields: bool) -> bytes:
        """Return the request body in OpenAI's format, with additional fields."""
        messages = self.messages
        if self.system_prompt is not None:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        return orjson.dumps({"model": self.model, "messages": messages, **self.options, **fields})


@dataclass(slots=True, kw_only=True)
class Completion:
    """The model's answer; `tokens` is Groq's `total_tokens`, None if it reported no usage.

    `is_complete` is false if the turn was stopped or failed before the end of the answer.
    """

    text: str
    model: str
    tokens: int | None
    finish_reason: str
    is_complete: bool = True


def parse_completion(content: bytes, *, requested_model: str) -> Completion:
    """Return the completion in a response body; raise CompletionUnavailable if there is none."""
    reply = parse_json(content)
    try:
        choice = first_choice(reply["choices"])
        text = choice["message"].get("content") or ""
        model = reply.get("model") or requested_model
        finish_reason = choice.get("finish_reason") or "stop"
        usage = reply.get("usage") or {}
        tokens = valid_tokens(usage.get("total_tokens"))
    except (AttributeError, IndexError, KeyError, TypeError):
        raise CompletionUnavailable("Groq's response is not a completion") from None
    if not (isinstance(text, str) and isinstance(model, str) and isinstance(finish_reason, str)):
        raise CompletionUnavailable("Groq's completion has fields of the wrong type")
    return Completion(text=text, model=model, tokens=tokens, finish_reason=finish_reason)


@dataclass(slots=True)
class _ToolCall:
    """A tool call of a stream: its id, and the parts of each field of its function."""

    id: str | None = None
    function: dict[str, list[str]] = field(default_factory=dict)

    def joined(self) -> dict[str, Any]:
        """Return the call in OpenAI's format."""
        function = {name: "".join(parts) for name, parts in self.function.items()}
        call: dict[str, Any] = {"type": "function", "function": function}
        return call if self.id is None else {**call, "id": self.id}


class StreamParser:
    """Parses a streamed completion from bytes that may be cut anywhere.

    `tokens`, `finish_reason` and `model` are known after the chunk with the finish reason. `feed`
    does not raise: `error` is the error that ended the stream. With `has_tools`, tool calls are
    collected.
    """

    def __init__(self, requested_model: str, *, has_tools: bool = False) -> None:
        self.model = requested_model
        self.tokens: int | None = None
        self.finish_reason: str | None = None
        self.is_done = False
        self.error: CompletionError | None = None
        # Whether Groq itself has sent the error.
        self.has_error_event = False
        self._has_tools = has_tools
        self._calls: dict[int, _ToolCall] = {}
        self._data = DataParser()

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls, assembled from their deltas."""
        return [self._calls[index].joined() for index in sorted(self._calls)]

    def raise_error(self) -> None:
        """Raise the error that ended the stream, if there is one.

        The parser then no longer refers to it: the frames in its traceback refer to the parser.
        """
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error

    def feed(self, chunk: bytes) -> str:
        """Return the text in the received bytes, up to an error."""
        text = ""
        try:
            for payload in self._data.feed(chunk):
                text += self._parse_payload(payload)
                if self.is_done:
                    return text
            if self._data.pending_bytes > MAX_EVENT_BYTES:
                raise CompletionUnavailable(f"an event exceeds {MAX_EVENT_BYTES} bytes")
        except CompletionError as error:
            self.error = error
        return text

    def _parse_payload(self, payload: bytes) -> str:
        if payload == DONE:
            self.is_done = True
            return ""
        chunk = parse_json(payload)
        try:
            if chunk.get("error"):
                self.has_error_event = True
                raise _stream_error(chunk["error"])
            return self._parse_chunk(chunk)
        except (AttributeError, IndexError, KeyError, TypeError):
            raise CompletionUnavailable("an event of the stream is not a chunk") from None

    def _parse_chunk(self, chunk: dict[str, Any]) -> str:
        choices = chunk.get("choices")
        usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage")
        if usage:
            self.tokens = valid_tokens(usage.get("total_tokens"))
        if not choices:
            return ""
        choice = choices[0]
        if choice.get("index"):
            # A request for several choices: the answer is the first of them.
            choice = next((other for other in choices if not other.get("index")), {})
        if choice.get("finish_reason"):
            self.finish_reason = str(choice["finish_reason"])
            model = chunk.get("model")
            self.model = model if isinstance(model, str) and model else self.model
        delta = choice.get("delta") or {}
        if self._has_tools:
            for part in delta.get("tool_calls") or ():
                self._add_call_part(part)
        text = delta.get("content") or ""
        if not isinstance(text, str):
            raise CompletionUnavailable("the content of a chunk is not a text")
        return text

    def _add_call_part(self, part: dict[str, Any]) -> None:
        """Add a delta of a tool call: strings are concatenated, an id replaces the earlier one."""
        call = self._calls.setdefault(part.get("index", 0), _ToolCall())
        if len(self._calls) > MAX_TOOL_CALLS:
            raise CompletionUnavailable(f"more than {MAX_TOOL_CALLS} tool calls")
        call.id = part.get("id") or call.id
        for name, value in (part.get("function") or {}).items():
            if isinstance(value, str):
                call.function.setdefault(name, []).append(value)


def first_choice(choices: Any) -> Any:
    """Return the choice with the index 0 of a completion that is not streamed."""
    first = choices[0]
    if not first.get("index"):
        return first
    return next((choice for choice in choices if not choice.get("index")), first)


def valid_tokens(tokens: object) -> int | None:
    """Return a token count, or None if the value cannot be a token count."""
    return tokens if type(tokens) is int and 0 <= tokens <= MAX_TOKENS else None


def parse_json(data: bytes) -> Any:
    """Parse JSON from Groq; raise CompletionUnavailable if it is not JSON."""
    try:
        return loads(data)
    except ValueError:
        raise CompletionUnavailable("Groq sent invalid JSON") from None


def _stream_error(error: Any) -> CompletionError:
    """Return the error for an error event of Groq; the text is omitted, it may quote the prompt."""
    code = error.get("code") if isinstance(error, dict) else None
    status = error.get("status_code") if isinstance(error, dict) else None
    if status == 400 or code in {"json_validate_failed", "tool_use_failed"}:  # noqa: PLR2004 - an HTTP status
        return CompletionRejected(f"during the stream: {code}")
    return CompletionUnavailable(f"during the stream: {str(code)[:MAX_CODE_CHARS]}")
