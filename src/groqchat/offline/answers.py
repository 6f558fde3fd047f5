"""The answers of the mock Groq server.

Equal messages receive equal answers. An answer quotes the last two user messages and counts all
messages, which shows the context that the server received.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any
from zlib import crc32

from groqchat.offline.schema_values import Schema, SchemaValues

# Long enough to recognise a message, short enough to read.
QUOTE_CHARS = 80
CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MockAnswer:
    """An answer in chunks, with estimated token counts."""

    id: str
    chunks: Sequence[str]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    tool_calls: Sequence[dict[str, Any]] = ()

    @property
    def text(self) -> str:
        """The complete text."""
        return "".join(self.chunks)

    @property
    def usage(self) -> dict[str, float]:
        """Tokens, and times in seconds, in Groq's format."""
        return {
            "queue_time": 0.0,
            "prompt_tokens": self.prompt_tokens,
            "prompt_time": 0.0,
            "completion_tokens": self.completion_tokens,
            "completion_time": 0.0,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "total_time": 0.0,
        }


def before_stop(answer: MockAnswer, stops: Sequence[str]) -> MockAnswer:
    """Return an answer up to the first of the texts that the client named as its end."""
    left = min((index for stop in stops if (index := answer.text.find(stop)) >= 0), default=None)
    if left is None:
        return answer
    chunks: list[str] = []
    for chunk in answer.chunks:
        chunks.append(chunk[:left])
        left -= len(chunks[-1])
    kept = [chunk for chunk in chunks if chunk]
    return replace(answer, chunks=kept, completion_tokens=len(kept), finish_reason="stop")


def answer_to(
    messages: Sequence[Mapping[str, Any]],
    max_tokens: int | None,
    *,
    chunk_count: int | None = None,
    as_json: bool = False,
    schema: Schema | None = None,
) -> MockAnswer:
    """Return the answer to a conversation.

    Each word is a chunk and counts as one token. `chunk_count` repeats or shortens a text, not
    JSON; `max_tokens` truncates the answer. With `as_json`, the answer is an object. With `schema`,
    it is a JSON value that satisfies the schema. Raises SchemaError.
    """
    user_texts = [_text(message) for message in messages if message["role"] == "user"]
    sentence = _sentence(user_texts, len(messages))
    if schema is not None:
        sentence = _json(SchemaValues(schema, _quote(last_user_text(messages))).value())
    elif as_json:
        sentence = _json({"answer": sentence})
    words = [f"{word} " for word in sentence.split(" ")]
    is_text = schema is None and not as_json
    if chunk_count is not None and is_text:
        words = list(islice(cycle(words), chunk_count))
    chunks = [*words[:-1], words[-1].rstrip()]
    is_truncated = max_tokens is not None and len(chunks) > max_tokens
    if is_truncated:
        chunks = chunks[:max_tokens]
    prompt = "\n".join(_text(message) for message in messages)
    return MockAnswer(
        id=f"chatcmpl-{crc32(prompt.encode(errors='replace')):08x}",
        chunks=chunks,
        prompt_tokens=len(prompt) // CHARS_PER_TOKEN + 1,
        completion_tokens=len(chunks),
        finish_reason="length" if is_truncated else "stop",
    )


def tool_call_answer(
    name: str, messages: Sequence[Mapping[str, Any]], *, parameters: Schema | None = None
) -> MockAnswer:
    """Return an answer that calls a tool; its arguments quote the last user message.

    The arguments satisfy the JSON schema `parameters`. Raises SchemaError.
    """
    quote = _quote(last_user_text(messages))
    values = {"said": quote} if parameters is None else SchemaValues(parameters, quote).value()
    arguments = _json(values)
    number = crc32(arguments.encode(errors="replace"))
    return MockAnswer(
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


def last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last user message, empty if there is none."""
    return next((_text(each) for each in reversed(messages) if each["role"] == "user"), "")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _sentence(user_texts: Sequence[str], message_count: int) -> str:
    if not user_texts:
        return "You have asked nothing yet."
    sentence = f'This is the mock Groq server, not a model. You said: "{_quote(user_texts[-1])}".'
    if len(user_texts) > 1:
        sentence += f' Before that you said: "{_quote(user_texts[-2])}".'
    return f"{sentence} Messages received: {message_count}."


def _quote(text: str) -> str:
    return text if len(text) <= QUOTE_CHARS else f"{text[: QUOTE_CHARS - 1]}…"


def _text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
