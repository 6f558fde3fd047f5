"""Messages in Groq's wire format: stored, compared, and chosen for a context."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from groqchat.services.context import BYTES_PER_TOKEN, TOKENS_PER_MESSAGE
from groqchat.storage.messages import ROLES, Message, new_message_id

# They precede the conversation of this one request and are not kept.
INSTRUCTION_ROLES = frozenset({"system", "developer"})

WireMessage: TypeAlias = dict[str, Any]


def stored(message: WireMessage, model: str | None) -> Message:
    """Return a message that a client sent as it is stored."""
    content = message.get("content")
    extra = {
        name: value
        for name, value in message.items()
        if name not in {"role", "content"} and value is not None
    }
    if isinstance(content, list):
        # In parts: as it was sent beside what can be read of it.
        extra["content"] = content
    return Message(
        id=new_message_id(),
        role=ROLES[message["role"]],
        content=content if isinstance(content, str) else _text(content),
        model=model,
        extra=extra or None,
    )


def answer_message(
    message: WireMessage, *, model: str | None, tokens: int | None, finish_reason: str | None
) -> Message:
    """Return a completion's message as it is stored: its text, and its calls of tools."""
    content, calls = message.get("content"), message.get("tool_calls")
    return Message(
        id=new_message_id(),
        role="assistant",
        content=content if isinstance(content, str) else "",
        model=model,
        tokens=tokens,
        finish_reason=finish_reason,
        extra={"tool_calls": calls} if isinstance(calls, list) and calls else None,
    )


def on_wire(message: Message) -> WireMessage:
    """Return a stored message as the model is given it."""
    return {"role": message.role, "content": message.content, **(message.extra or {})}


def overlap(earlier: Sequence[WireMessage], said: Sequence[WireMessage]) -> int:
    """Return how many of the first messages that a client sent its session has at its end.

    Many clients send the whole conversation each time, which may be longer than what is known
    of it, and send a request again that failed.
    """
    known, sent = list(map(_meaning, earlier)), list(map(_meaning, said))
    for count in range(len(sent), 0, -1):
        common = min(count, len(known))
        if common and known[-common:] == sent[count - common : count]:
            return count
    return 0


def within_budget(
    earlier: Sequence[WireMessage], *, messages: int, tokens: int, needed: bool
) -> list[WireMessage]:
    """Return the latest messages that fit, from one of a user on.

    Where they are `needed`, since what follows are results of tools, the last question and all
    behind it come whether they fit or not.
    """
    begin = len(earlier)
    for at in range(len(earlier) - 1, -1, -1):
        tokens -= _size(earlier[at]) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
        fits = tokens >= 0 and len(earlier) - at <= messages
        if not fits and not (needed and begin == len(earlier)):
            break
        if earlier[at]["role"] == "user":
            begin = at
    return list(earlier[begin:])


def with_whole_calls(
    earlier: Sequence[WireMessage], said: Sequence[WireMessage]
) -> list[WireMessage]:
    """Return earlier messages without calls that nobody answers, and results of no call.

    A model refuses both. What answers a call may be the first that is `said`.
    """
    whole: list[WireMessage] = []
    everything = [*earlier, *said]
    at = 0
    while at < len(earlier):
        message = everything[at]
        end = at + 1
        while end < len(everything) and everything[end]["role"] == "tool":
            end += 1
        results = {result.get("tool_call_id") for result in everything[at + 1 : end]}
        calls = message.get("tool_calls") or []
        if message["role"] != "tool":
            if {call.get("id") for call in calls} == results:
                whole += everything[at : min(end, len(earlier))]
            elif message["content"] or not calls:
                whole.append({k: value for k, value in message.items() if k != "tool_calls"})
        at = end
    return whole


def _meaning(message: WireMessage) -> object:
    """Return what two messages have in common that mean the same.

    Clients send an answer back with fields that were null or absent before, and its calls
    written anew.
    """
    content = message.get("content")
    calls = message.get("tool_calls") if message["role"] == "assistant" else None
    return (
        message["role"],
        content or "" if isinstance(content, str | None) else json.dumps(content, sort_keys=True),
        message.get("tool_call_id") or "",
        [_call(call) for call in calls] if isinstance(calls, list) else [],
    )


def _call(call: Any) -> object:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = call["function"]
    arguments = function.get("arguments")
    with suppress(TypeError, ValueError, RecursionError):
        arguments = json.dumps(json.loads(arguments), sort_keys=True)
    return call.get("id"), function.get("name"), arguments


def _size(message: WireMessage) -> int:
    return sum(len(str(value).encode(errors="replace")) for value in message.values())


def _text(content: object) -> str:
    """Return the text in a content of several parts."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
