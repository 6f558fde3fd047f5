"""What the stand-in says: the same to the same question, and enough to see that it remembers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any
from zlib import crc32

# A quotation long enough to recognise, short enough to read.
QUOTE_CHARS = 80
CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineAnswer:
    """An answer in pieces, with what it is said to have cost."""

    id: str
    chunks: Sequence[str]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    tool_calls: Sequence[dict[str, Any]] = ()

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.chunks)

    @property
    def usage(self) -> dict[str, float]:
        """Tokens, and times in seconds, in Groq's form."""
        return {
            "queue_time": 0.0,
            "prompt_tokens": self.prompt_tokens,
            "prompt_time": 0.0,
            "completion_tokens": self.completion_tokens,
            "completion_time": 0.0,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "total_time": 0.0,
        }


def answer_to(
    messages: Sequence[Mapping[str, Any]],
    max_tokens: int | None,
    *,
    pieces: int | None = None,
    as_json: bool = False,
) -> OfflineAnswer:
    """Return the answer to a conversation, of so many pieces, cut at `max_tokens`."""
    asked = [_text(message) for message in messages if message["role"] == "user"]
    sentence = _sentence(asked, len(messages))
    if as_json:
        sentence = json.dumps({"answer": sentence}, ensure_ascii=False)
    words = [f"{word} " for word in sentence.split(" ")]
    if pieces is not None:
        words = list(islice(cycle(words), pieces))
    chunks = [*words[:-1], words[-1].rstrip()]
    cut = max_tokens is not None and len(chunks) > max_tokens
    if cut:
        chunks = chunks[:max_tokens]
    everything = "\n".join(_text(message) for message in messages)
    return OfflineAnswer(
        id=f"chatcmpl-{crc32(everything.encode(errors='replace')):08x}",
        chunks=chunks,
        prompt_tokens=len(everything) // CHARS_PER_TOKEN + 1,
        completion_tokens=len(chunks),
        finish_reason="length" if cut else "stop",
    )


def call_of(name: str, messages: Sequence[Mapping[str, Any]]) -> OfflineAnswer:
    """Return the call of a tool with what the user said last."""
    asked = [_text(message) for message in messages if message["role"] == "user"]
    arguments = json.dumps({"said": _quote(asked[-1]) if asked else ""})
    number = crc32(arguments.encode())
    return OfflineAnswer(
        id=f"chatcmpl-{number:08x}",
        chunks=(),
        prompt_tokens=1,
        completion_tokens=1,
        finish_reason="tool_calls",
        tool_calls=[
            {
                "id": f"call_{number:08x}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
        ],
    )


def _sentence(asked: Sequence[str], count: int) -> str:
    if not asked:
        return "You have asked nothing yet."
    sentence = f'This is the offline stand-in, not a model. You said: "{_quote(asked[-1])}".'
    if len(asked) > 1:
        sentence += f' Before that you said: "{_quote(asked[-2])}".'
    return f"{sentence} Messages I was given: {count}."


def _quote(text: str) -> str:
    return text if len(text) <= QUOTE_CHARS else f"{text[: QUOTE_CHARS - 1]}…"


def _text(message: Mapping[str, Any]) -> str:
    """Return the text of a message whose content may come in parts."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
