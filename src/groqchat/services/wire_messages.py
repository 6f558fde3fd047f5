"""Messages in Groq's wire format: stored, compared, and chosen for a context."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

from groqchat.services.context import BYTES_PER_TOKEN, TOKENS_PER_MESSAGE
from groqchat.storage.messages import ROLES, Message, new_message_id

# They precede the conversation of this one request and are not kept.
INSTRUCTION_ROLES = frozenset({"system", "developer"})

# An image counts for about 2,000 tokens, however many bytes it has.
IMAGE_BYTES = 2_000 * BYTES_PER_TOKEN

# In place of a message that the session does not know.
UNKNOWN = "\0"

WireMessage: TypeAlias = dict[str, Any]


class Overlap(NamedTuple):
    """How many messages of a request, from its first on, its session has, and where they begin."""

    known: int
    begin: int


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


def is_whole(said: Sequence[WireMessage]) -> bool:
    """Tell whether a request holds a conversation, and not only what is new in one."""
    # In the last place it is how the answer is to begin.
    return any(message["role"] == "assistant" for message in said[:-1])


def overlap(earlier: Sequence[WireMessage], said: Sequence[WireMessage]) -> Overlap:
    """Return what of a request its session holds already.

    Many clients send the whole conversation each time, which may be longer than what is known of
    it, and send a request again that failed. Some have it otherwise than the session: an answer was
    stopped, or asked for again, or calls of tools are left out.
    """
    known, sent = _coded(earlier, said)
    found = _at_end(known, sent)
    if not is_whole(said):
        return found
    other = _divergence(known, sent)
    # What a question alone has in common may be chance.
    roles = {message["role"] for message in said[: other.known]}
    is_recognised = roles >= {"user", "assistant"} or other.begin == 0
    return other if is_recognised and other.known > found.known else found


def is_repeated(earlier: Sequence[WireMessage], said: Sequence[WireMessage]) -> bool:
    """Tell whether a request is at the end of its session already."""
    return _at_end(*_coded(earlier, said)).known == len(said)


def _coded(earlier: Sequence[WireMessage], said: Sequence[WireMessage]) -> tuple[str, str]:
    """Return a character for each message: to look for one text in another takes no time."""
    codes: dict[object, str] = {}
    known = "".join(codes.setdefault(_meaning(each), chr(len(codes) + 1)) for each in earlier)
    return known, "".join(codes.get(_meaning(each), UNKNOWN) for each in said)


def _at_end(known: str, sent: str) -> Overlap:
    """Return what of a request the session ends with."""
    at = sent.rfind(known) if known else -1
    if at >= 0:
        return Overlap(known=at + len(known), begin=0)
    for count in range(min(len(sent), len(known)), 0, -1):
        if known.endswith(sent[:count]):
            return Overlap(known=count, begin=len(known) - count)
    return Overlap(known=0, begin=len(known))


def _divergence(known: str, sent: str) -> Overlap:
    """Return how far a whole conversation is found in its session, which goes on otherwise."""
    best = Overlap(known=0, begin=len(known))
    for begin, first in enumerate(known):
        if first == sent[0]:
            count = 0
            for code in known[begin:]:
                count += count < len(sent) and code == sent[count]
            if count > best.known:
                best = Overlap(known=count, begin=begin)
    return best


def within_budget(
    earlier: Sequence[WireMessage], *, messages: int, tokens: int, needed: bool
) -> list[WireMessage]:
    """Return the latest messages that fit, from one of a user on.

    Where they are `needed`, since what follows are results of tools, the last question and all
    behind it come whether they fit or not. Where a turn with many calls of tools does not fit, its
    last answer is better than nothing.
    """
    begin = len(earlier)
    roles = [message["role"] for message in earlier[-2:]]
    ends_with_tools = not needed and roles == ["tool", "assistant"]
    for at in range(len(earlier) - 1, -1, -1):
        tokens -= _size(earlier[at]) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
        fits = tokens >= 0 and len(earlier) - at <= messages
        if not fits and not (needed and begin == len(earlier)):
            break
        is_last_answer = ends_with_tools and at == len(earlier) - 1
        if earlier[at]["role"] == "user" or is_last_answer:
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
        results = {str(result.get("tool_call_id")) for result in everything[at + 1 : end]}
        calls = calls_of(message)
        if message["role"] != "tool":
            if {str(call.get("id")) for call in calls} == results:
                whole += everything[at : min(end, len(earlier))]
            elif message["content"] or not calls:
                whole.append({k: value for k, value in message.items() if k != "tool_calls"})
        at = end
    return whole


def calls_of(message: WireMessage) -> list[dict[str, Any]]:
    """Return the calls of tools in a message; what is none is left out."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _meaning(message: WireMessage) -> object:
    """Return what two messages have in common that mean the same.

    Clients send an answer back with fields that were null or absent before, its text in a part or
    trimmed, and its calls written anew.
    """
    calls = calls_of(message) if message["role"] == "assistant" else []
    content = message.get("content") or ""
    if isinstance(content, list) and all(map(_is_text, content)):
        content = _text(content)
    return (
        message["role"],
        content.strip() if isinstance(content, str) else json.dumps(content, sort_keys=True),
        message.get("tool_call_id") or "",
        message["role"] == "user" and json.dumps(message.get("name")),
        (calls and json.dumps([_call(call) for call in calls], sort_keys=True)) or "",
    )


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text"


def _call(call: dict[str, Any]) -> object:
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    arguments: Any = function.get("arguments")
    with suppress(TypeError, ValueError, RecursionError):
        arguments = json.dumps(json.loads(arguments), sort_keys=True)
    return call.get("id"), function.get("name"), arguments


def _size(message: WireMessage) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    others = (value for name, value in message.items() if name != "content")
    return sum(IMAGE_BYTES if _is_image(value) else _bytes(value) for value in (*parts, *others))


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


def _bytes(value: object) -> int:
    return len(str(value).encode(errors="replace"))


def _text(content: object) -> str:
    """Return the text in a content of several parts."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
