"""Messages in OpenAI's format: conversion, and choice of the context."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, TypeAlias

from groqchat.services.turns.context import BYTES_PER_TOKEN, TOKENS_PER_MESSAGE
from groqchat.storage.messages import ROLES, Message

# Messages with these roles apply to one request, precede the conversation and are not stored.
INSTRUCTION_ROLES = frozenset({"system", "developer"})
# An image counts as about 2,000 tokens, whatever its size in bytes.
IMAGE_BYTES = 2_000 * BYTES_PER_TOKEN

OpenAIMessage: TypeAlias = dict[str, Any]


def to_message(message: OpenAIMessage, model: str | None, *, message_id: str) -> Message:
    """Return a client's message in its stored form."""
    content = message.get("content")
    extra = {
        name: value
        for name, value in message.items()
        if name not in {"role", "content"} and value is not None
    }
    if isinstance(content, list):
        # Content in parts is stored unchanged, in addition to its text.
        extra["content"] = content
    return Message(
        id=message_id,
        role=ROLES[message["role"]],
        content=content if isinstance(content, str) else text_of(content),
        model=model,
        extra=extra or None,
        is_sent=message["role"] == "assistant",
    )


def to_openai(message: Message) -> OpenAIMessage:
    """Return a stored message in OpenAI's format."""
    return {"role": message.role, "content": message.content, **(message.extra or {})}


def trim_to_budget(
    earlier: Sequence[OpenAIMessage], *, messages: int, tokens: int, needs_last_exchange: bool
) -> list[OpenAIMessage]:
    """Return the latest messages within both limits, starting with a user message.

    With `needs_last_exchange`, because tool results follow, the last user message and everything
    after it are returned even beyond the limits. If an exchange with many tool calls does not fit,
    at least its final answer is returned.
    """
    begin = len(earlier)
    roles = [message["role"] for message in earlier[-2:]]
    ends_with_tools = not needs_last_exchange and roles == ["tool", "assistant"]
    for index in range(len(earlier) - 1, -1, -1):
        tokens -= _size(earlier[index]) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
        fits = tokens >= 0 and len(earlier) - index <= messages
        if not fits and not (needs_last_exchange and begin == len(earlier)):
            break
        is_final_answer = ends_with_tools and index == len(earlier) - 1
        if earlier[index]["role"] == "user" or is_final_answer:
            begin = index
    if needs_last_exchange and begin == len(earlier):
        # The user message is older than what was read, but the model needs the calls.
        begin = max((at for at, each in enumerate(earlier) if tool_calls_of(each)), default=begin)
    return list(earlier[begin:])


def with_calls_last(
    earlier: Sequence[OpenAIMessage], sent: Sequence[OpenAIMessage]
) -> list[OpenAIMessage]:
    """Return earlier messages with the calls last whose results are the start of the request.

    Other results of the same calls follow them. Another turn may have stored messages since. Models
    expect the results directly after the calls.
    """
    results = {str(each.get("tool_call_id")) for each in takewhile(_is_result, sent)}
    for index in range(len(earlier) - 1 if results else -1, -1, -1):
        ids = {str(call.get("id")) for call in tool_calls_of(earlier[index])}
        if results & ids:
            moved = [earlier[index]]
            rest = list(earlier[:index])
            for message in earlier[index + 1 :]:
                is_paired = _is_result(message) and str(message.get("tool_call_id")) in ids
                (moved if is_paired else rest).append(message)
            return [*rest, *moved]
    return list(earlier)


def _is_result(message: OpenAIMessage) -> bool:
    return bool(message["role"] == "tool")


def drop_unpaired_tool_calls(
    earlier: Sequence[OpenAIMessage], sent: Sequence[OpenAIMessage]
) -> list[OpenAIMessage]:
    """Return earlier messages without tool calls that have no result, and results without a call.

    Models reject both. The result of a call may be the first message of the request.
    """
    paired: list[OpenAIMessage] = []
    conversation = [*earlier, *sent]
    index = 0
    while index < len(earlier):
        message = conversation[index]
        end = index + 1
        while end < len(conversation) and conversation[end]["role"] == "tool":
            end += 1
        results = {str(result.get("tool_call_id")) for result in conversation[index + 1 : end]}
        calls = tool_calls_of(message)
        if message["role"] != "tool":
            if {str(call.get("id")) for call in calls} == results:
                paired += conversation[index : min(end, len(earlier))]
            elif message["content"] or not calls:
                paired.append({k: value for k, value in message.items() if k != "tool_calls"})
        index = end
    return paired


def messages_of_calls(earlier: Sequence[Message], sent: Sequence[OpenAIMessage]) -> list[Message]:
    """Return the earlier messages to which the results at the start of a request belong.

    These are the last user message before the calls, everything up to them, and their other
    results.
    """
    results = {str(each.get("tool_call_id")) for each in takewhile(_is_result, sent)}
    begin = end = user = 0
    ids: set[str] = set()
    for index, message in enumerate(earlier if results else ()):
        calls = {str(call.get("id")) for call in tool_calls_of(message.extra or {})}
        if message.role == "user":
            user = index
        elif results & calls:
            begin, end, ids = user, index + 1, calls
    others = [each for each in earlier[end:] if (each.extra or {}).get("tool_call_id") in ids]
    return [*earlier[begin:end], *others]


def tool_calls_of(message: OpenAIMessage) -> list[dict[str, Any]]:
    """Return the tool calls of a message, without values that are not objects."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def type_of(part: object) -> object:
    """Return the type of a part of a content, None if it has none."""
    return part.get("type") if isinstance(part, dict) else None


def _size(message: OpenAIMessage) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    others = (value for name, value in message.items() if name != "content")
    return sum(
        IMAGE_BYTES if type_of(value) == "image_url" else len(str(value).encode(errors="replace"))
        for value in (*parts, *others)
    )


def text_of(content: object) -> str:
    """Return the text of content in parts."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
