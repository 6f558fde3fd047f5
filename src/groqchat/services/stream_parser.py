"""Groq's server-sent events, read at little more than the cost of their JSON."""

from typing import Any

from groqchat.errors import CompletionError, CompletionRejected, CompletionUnavailable
from groqchat.lenient_json import loads

# One event holds a few tokens; a line that never ends must not fill the memory.
MAX_LINE_BYTES = 1024 * 1024
# More than any conversation can use, and what JSON numbers carry exactly.
MAX_TOKENS = 2**53
DONE = b"[DONE]"
DATA = b"data:"


class StreamParser:
    """Takes what arrives, however it was cut, and gives the text in it.

    `model`, `tokens` and `finish_reason` are what the stream has said of them so far; `error` is
    what it failed with, if it did.
    """

    def __init__(self, asked_model: str) -> None:
        self.model = asked_model
        self.tokens: int | None = None
        self.finish_reason: str | None = None
        self.is_done = False
        self.error: CompletionError | None = None
        self._calls: dict[int, dict[str, Any]] = {}
        self._rest = b""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls of tools, put together from their pieces."""
        return [self._calls[index] for index in sorted(self._calls)]

    def feed(self, data: bytes) -> str:
        """Return the text in what has arrived, up to an error."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        text = ""
        try:
            for line in lines:
                if line.startswith(DATA):
                    text += self._text(line[len(DATA) :].strip())
            if len(self._rest) > MAX_LINE_BYTES:
                raise CompletionUnavailable("a line of Groq's stream does not end")
        except CompletionError as error:
            self.error = error
        return text

    def _text(self, event: bytes) -> str:
        if event == DONE:
            self.is_done = True
            return ""
        chunk = parse(event)
        try:
            if chunk.get("error"):
                raise _error(chunk["error"])
            return self._look_at(chunk)
        except (AttributeError, IndexError, KeyError, TypeError):
            raise CompletionUnavailable("a chunk of Groq's stream is not one") from None

    def _look_at(self, chunk: dict[str, Any]) -> str:
        choices = chunk.get("choices")
        usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage")
        if usage:
            self.tokens = plausible_tokens(usage.get("total_tokens"))
        if not choices:
            return ""
        choice = choices[0]
        if choice.get("finish_reason"):
            self.finish_reason = str(choice["finish_reason"])
            model = chunk.get("model")
            self.model = model if isinstance(model, str) and model else self.model
        delta = choice.get("delta") or {}
        for piece in delta.get("tool_calls") or ():
            self._add_call(piece)
        text = delta.get("content")
        return text if isinstance(text, str) else ""

    def _add_call(self, piece: dict[str, Any]) -> None:
        """Add a piece of a call: what is text goes on, anything else is given once."""
        call = self._calls.setdefault(piece.get("index", 0), {"type": "function", "function": {}})
        if piece.get("id"):
            call["id"] = piece["id"]
        for name, value in (piece.get("function") or {}).items():
            if isinstance(value, str):
                call["function"][name] = call["function"].get(name, "") + value


def plausible_tokens(tokens: object) -> int | None:
    """Return a count of tokens as it is; None for what cannot be one."""
    return tokens if type(tokens) is int and 0 <= tokens <= MAX_TOKENS else None


def parse(data: bytes) -> Any:
    """Parse what Groq sent."""
    try:
        return loads(data)
    except ValueError:
        raise CompletionUnavailable("Groq sent what is not JSON") from None


def _error(error: Any) -> CompletionError:
    """Return ours for an error that Groq sent in mid-stream; its text may repeat the prompt."""
    code = error.get("code") if isinstance(error, dict) else None
    status = error.get("status_code") if isinstance(error, dict) else None
    if status == 400 or code in {"json_validate_failed", "tool_use_failed"}:  # noqa: PLR2004 - HTTP
        return CompletionRejected(f"in mid-stream: {code}")
    return CompletionUnavailable(f"in mid-stream: {str(code)[:64]}")
