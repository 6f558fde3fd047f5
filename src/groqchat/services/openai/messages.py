"""Messages in OpenAI's format: conversion, comparison with a session, and choice of the context."""

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple, TypeAlias

import orjson

from groqchat.services.turns.context import BYTES_PER_TOKEN, TOKENS_PER_MESSAGE
from groqchat.storage.exchanges import find_answered
from groqchat.storage.messages import ROLES, Message, is_from_client

# Messages with these roles apply to one request, precede the conversation and are not stored.
INSTRUCTION_ROLES = frozenset({"system", "developer"})
# An image counts as about 2,000 tokens, whatever its size in bytes.
IMAGE_BYTES = 2_000 * BYTES_PER_TOKEN
# Longer arguments of calls, in characters, are compared as text and not as JSON: those of a whole
# session would take seconds to parse, for each request.
MAX_PARSED_ARGUMENTS = 4096
# The symbol of a message that the session does not contain.
UNKNOWN = "\0"

OpenAIMessage: TypeAlias = dict[str, Any]


class Overlap(NamedTuple):
    """The part of a request that its session contains already.

    `known` counts the messages at the start of the request; they start at index `begin` of the
    session.
    """

    known: int
    begin: int


class Match(NamedTuple):
    """The overlap of a request and its session.

    `to_retain`: messages that the request needs, and that a rejected request would remove, because
    they have no complete answer. `last`: the last common message that is no incomplete answer.
    """

    overlap: Overlap
    to_retain: list[Message]
    last: Message | None


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
        content=content if isinstance(content, str) else _text(content),
        model=model,
        extra=extra or None,
        is_sent=message["role"] == "assistant",
    )


def to_openai(message: Message) -> OpenAIMessage:
    """Return a stored message in OpenAI's format."""
    return {"role": message.role, "content": message.content, **(message.extra or {})}


def is_transcript(sent: Sequence[OpenAIMessage]) -> bool:
    """Return whether a request contains earlier answers, and so the whole conversation."""
    # An assistant message in the last place is a prefix of the requested answer.
    return any(message["role"] == "assistant" for message in sent[:-1])


def find_overlap(
    earlier: Sequence[OpenAIMessage], sent: Sequence[OpenAIMessage], *, is_whole: bool
) -> Overlap:
    """Return the part of a request that its session contains already.

    Many clients send the whole conversation with each request, and repeat failed requests. The
    transcript may be longer than the messages that were read, unless the session `is_whole`. It may
    diverge from them if an answer was stopped or regenerated, or if the client omits tool calls.
    """
    return _overlap(*_as_symbols(earlier, sent), sent, is_whole=is_whole)


def _overlap(known: str, symbols: str, sent: Sequence[OpenAIMessage], *, is_whole: bool) -> Overlap:
    at_end = _overlap_at_end(known, symbols, is_whole=is_whole)
    if not is_transcript(sent):
        return at_end
    diverging = _diverging_overlap(known, symbols)
    # A common user message alone may be a coincidence. A new message must never be left out.
    is_match = _has_answer(sent, diverging) or (is_whole and diverging.begin == 0)
    has_new = diverging.known < len(sent) or not _has_answer(sent, at_end)
    return diverging if diverging.known > at_end.known and is_match and has_new else at_end


def _has_answer(sent: Sequence[OpenAIMessage], overlap: Overlap) -> bool:
    """Return whether an overlap contains messages of the user and the model."""
    return {message["role"] for message in sent[: overlap.known]} >= {"user", "assistant"}


def match_session(
    earlier: Sequence[Message],
    sent: Sequence[OpenAIMessage],
    *,
    before: str | None,
    is_whole: bool,
) -> Match:
    """Return what a request and its session have in common, of which `earlier` was read.

    If the last common message follows the last answer, and its id is not below `before`, the
    messages after that answer are not compared.
    """
    known, symbols = _as_symbols([to_openai(message) for message in earlier], sent)
    overlap = _overlap(known, symbols, sent, is_whole=is_whole)
    indexes = _common_messages(known, symbols, overlap)
    end = len(earlier) - sum(1 for _ in takewhile(is_from_client, reversed(earlier)))
    if before is not None and indexes and indexes[-1] >= end and earlier[indexes[-1]].id >= before:
        overlap = _overlap(known[:end], symbols, sent, is_whole=is_whole)
        indexes = _common_messages(known[:end], symbols, overlap)
    common = [earlier[index] for index in indexes]
    needed = [*common, *(each for each in messages_of_calls(earlier, sent) if each not in common)]
    if not needed:
        return Match(overlap, to_retain=[], last=None)
    unfinished = find_answered(earlier).unfinished
    return Match(
        overlap,
        to_retain=[each for each in needed if each.status or each.id in unfinished],
        last=next((each for each in reversed(common) if not each.status), None),
    )


def _common_messages(known: str, symbols: str, overlap: Overlap) -> list[int]:
    """Return the indexes of the session's messages that the request contains, in order."""
    indexes: list[int] = []
    for index in range(len(known) - 1, overlap.begin - 1, -1):
        left = overlap.known - len(indexes)
        if left and known[index] == symbols[left - 1]:
            indexes.append(index)
    return indexes[::-1]


def is_repeated(earlier: Sequence[OpenAIMessage], sent: Sequence[OpenAIMessage]) -> bool:
    """Return whether a session ends with all messages of a request."""
    return _overlap_at_end(*_as_symbols(earlier, sent), is_whole=True).known == len(sent)


def _as_symbols(earlier: Sequence[OpenAIMessage], sent: Sequence[OpenAIMessage]) -> tuple[str, str]:
    """Return one character for each message; equal messages have equal characters.

    Searching one string in another is fast.
    """
    symbols: dict[object, str] = {}
    known = "".join(
        symbols.setdefault(_canonical(message), chr(len(symbols) + 1)) for message in earlier
    )
    return known, "".join(symbols.get(_canonical(message), UNKNOWN) for message in sent)


def _overlap_at_end(known: str, sent: str, *, is_whole: bool) -> Overlap:
    """Return the overlap of the session's end with the request."""
    search = sent.find if is_whole else sent.rfind
    index = search(known) if known else -1
    if index >= 0:
        return Overlap(known=index + len(known), begin=0)
    for count in range(min(len(sent), len(known)), 0, -1):
        if known.endswith(sent[:count]):
            return Overlap(known=count, begin=len(known) - count)
    return Overlap(known=0, begin=len(known))


def _diverging_overlap(known: str, sent: str) -> Overlap:
    """Return the longest start of a transcript that the session contains in order, with gaps."""
    # A later start never contains more of it.
    begin = known.find(sent[0])
    if begin < 0:
        return Overlap(known=0, begin=len(known))
    count = 0
    for symbol in known[begin:]:
        count += count < len(sent) and symbol == sent[count]
    return Overlap(known=count, begin=begin)


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
    return list(earlier[begin:])


def with_calls_last(
    earlier: Sequence[OpenAIMessage], sent: Sequence[OpenAIMessage]
) -> list[OpenAIMessage]:
    """Return earlier messages with the calls last whose results are the start of the request.

    Another turn may have stored messages since. Models expect the results directly after the calls.
    """
    results = {str(each.get("tool_call_id")) for each in takewhile(_is_result, sent)}
    if results:
        for index in range(len(earlier) - 1, -1, -1):
            if results & {str(call.get("id")) for call in tool_calls_of(earlier[index])}:
                return [*earlier[:index], *earlier[index + 1 :], earlier[index]]
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

    These are the last user message before the calls, and everything up to them.
    """
    results = {str(each.get("tool_call_id")) for each in takewhile(_is_result, sent)}
    begin = end = user = 0
    for index, message in enumerate(earlier if results else ()):
        if message.role == "user":
            user = index
        elif results & {str(call.get("id")) for call in tool_calls_of(message.extra or {})}:
            begin, end = user, index + 1
    return list(earlier[begin:end])


def tool_calls_of(message: OpenAIMessage) -> list[dict[str, Any]]:
    """Return the tool calls of a message, without values that are not objects."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _canonical(message: OpenAIMessage) -> object:
    """Return a key that is equal for messages with the same meaning.

    Clients return an answer with additional null fields, with its text in a part or stripped, and
    with its tool calls encoded again.
    """
    calls = tool_calls_of(message) if message["role"] == "assistant" else []
    content = message.get("content") or ""
    if isinstance(content, list) and all(_type_of(part) == "text" for part in content):
        content = _text(content)
    return (
        message["role"],
        content.strip() if isinstance(content, str) else _sorted_json(content),
        message.get("tool_call_id") or "",
        message["role"] == "user" and _sorted_json(message.get("name")),
        (calls and _sorted_json([_canonical_call(call) for call in calls])) or "",
    )


def _type_of(part: object) -> object:
    return part.get("type") if isinstance(part, dict) else None


def _sorted_json(value: object) -> str:
    with suppress(TypeError):  # orjson rejects integers beyond 64 bits, but is ten times as fast.
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    return json.dumps(value, sort_keys=True)


def _canonical_call(call: dict[str, Any]) -> object:
    function = call.get("function")
    if not isinstance(function, dict):
        return call
    arguments: Any = function.get("arguments")
    if isinstance(arguments, str) and len(arguments) > MAX_PARSED_ARGUMENTS:
        return call.get("id"), function.get("name"), arguments
    with suppress(TypeError, ValueError, RecursionError):
        # orjson would round integers beyond 64 bits.
        arguments = _sorted_json(json.loads(arguments))
    return call.get("id"), function.get("name"), arguments


def _size(message: OpenAIMessage) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    others = (value for name, value in message.items() if name != "content")
    return sum(
        IMAGE_BYTES if _type_of(value) == "image_url" else len(str(value).encode(errors="replace"))
        for value in (*parts, *others)
    )


def _text(content: object) -> str:
    """Return the text of content in parts."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
