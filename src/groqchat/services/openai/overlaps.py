"""The comparison of a request with its session: which of its messages are stored already."""

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple

import orjson

from groqchat.services.openai.messages import (
    OpenAIMessage,
    messages_of_calls,
    text_of,
    to_openai,
    tool_calls_of,
    type_of,
)
from groqchat.storage.exchanges import find_answered
from groqchat.storage.messages import Message, is_from_client

# The arguments of calls are compared as JSON up to this number of characters in all of a request.
# Those of a whole session would take seconds to parse, for each request.
MAX_PARSED_ARGUMENTS = 64 * 1024
# All integers up to here are exact as floats, so that 1.0 equals 1.
MAX_EXACT_FLOAT = 2.0**53
# The symbol of a message that the session does not contain.
UNKNOWN = "\0"


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
    `parent`: the id of the last common message, if the session has others after it.
    """

    overlap: Overlap
    to_retain: list[Message]
    last: Message | None
    parent: str | None


class _Session(NamedTuple):
    """The messages of a session that were read, and one character for each.

    Equal messages have equal characters. `unanswered`: the indexes of the messages that have no
    answer yet. The session `is_whole` if no message precedes them.
    """

    messages: Sequence[Message]
    symbols: str
    unanswered: Sequence[int]
    is_whole: bool

    def before(self, end: int) -> "_Session":
        """Return the first messages of the session."""
        return self._replace(messages=self.messages[:end], symbols=self.symbols[:end])


def is_transcript(sent: Sequence[OpenAIMessage]) -> bool:
    """Return whether a request contains earlier answers: it is a conversation, or its end."""
    # An assistant message in the last place is a prefix of the requested answer.
    return _has_answer(sent[:-1])


def find_overlap(
    earlier: Sequence[Message], sent: Sequence[OpenAIMessage], *, is_whole: bool
) -> Overlap:
    """Return the part of a request that its session contains already.

    Many clients send the whole conversation with each request, or its last messages, and repeat
    failed requests. The transcript may be longer than the messages that were read, unless the
    session `is_whole`. It may diverge from them if an answer was stopped or regenerated, or if the
    client omits tool calls.
    """
    session, symbols = _compare(earlier, sent, is_whole=is_whole)
    return _overlap(session, symbols, sent)


def _overlap(session: _Session, symbols: str, sent: Sequence[OpenAIMessage]) -> Overlap:
    at_end = _overlap_at_end(session, symbols, sent)
    if not is_transcript(sent):
        return at_end
    diverging = _without_new(session, symbols, sent, _diverging_overlap(session, symbols))
    # A common user message alone may be a coincidence.
    is_match = _has_answer(sent[: diverging.known]) or (session.is_whole and diverging.begin == 0)
    # Only new messages follow the last answer of the session, even if they equal older ones.
    is_continued = _has_answer(sent[: at_end.known]) and not _has_answer(sent[at_end.known : -1])
    is_longer = diverging.known > at_end.known
    return diverging if is_longer and is_match and not is_continued else at_end


def _without_new(
    session: _Session, symbols: str, sent: Sequence[OpenAIMessage], overlap: Overlap
) -> Overlap:
    """Return an overlap without new user messages after the last answer of the request.

    A message that follows is known if the session has no answer to it, because the client repeats a
    failed request, or if it follows the same message in the session, because the client regenerates
    the answer. Otherwise, it equals a stored message only by chance.
    """
    end = max(at for at, message in enumerate(sent[:-1]) if message["role"] == "assistant") + 1
    end += sum(1 for _ in takewhile(lambda message: message["role"] != "user", sent[end:]))
    indexes = _common_messages(session.symbols, symbols, overlap)
    # In a long transcript, the messages up to its last answer may not have been read.
    begin = len(indexes) - (overlap.known - end)
    if overlap.known <= end or begin < 1:
        return overlap
    known = begin
    while known < len(indexes) and _follows(session, indexes[known - 1], indexes[known]):
        known += 1
    last = indexes[known - 1]
    is_regenerated = not any(message.role == "user" for message in session.messages[last + 1 :])
    is_branch = session.messages[indexes[begin]].parent is not None
    if not (is_regenerated or is_branch or last in session.unanswered):
        known = begin
    return overlap._replace(known=end + known - begin)


def _follows(session: _Session, before: int, index: int) -> bool:
    """Return whether a message follows another one in the session, or has no answer yet."""
    message = session.messages[index]
    if index in session.unanswered:
        return True
    if message.parent is not None:
        return message.parent == session.messages[before].id
    return all(each.role != "user" for each in session.messages[before + 1 : index])


def _has_answer(messages: Sequence[OpenAIMessage]) -> bool:
    return any(message["role"] == "assistant" for message in messages)


def match_session(
    earlier: Sequence[Message],
    sent: Sequence[OpenAIMessage],
    *,
    before: str | None,
    is_whole: bool,
) -> Match:
    """Return what a request and its session have in common, of which `earlier` was read.

    If the last common message follows the last answer, the messages after that answer whose ids are
    not below `before` are not compared.
    """
    session, symbols = _compare(earlier, sent, is_whole=is_whole)
    overlap = _overlap(session, symbols, sent)
    indexes = _common_messages(session.symbols, symbols, overlap)
    end = _end_of_answers(earlier)
    if before is not None and indexes and indexes[-1] >= end and earlier[indexes[-1]].id >= before:
        end += sum(1 for _ in takewhile(lambda each: each.id < before, earlier[end:]))
        session = session.before(end)
        overlap = _overlap(session, symbols, sent)
        indexes = _common_messages(session.symbols, symbols, overlap)
    common = [earlier[index] for index in indexes]
    needed = [*common, *(each for each in messages_of_calls(earlier, sent) if each not in common)]
    if not needed:
        return Match(overlap, to_retain=[], last=None, parent=None)
    unfinished = find_answered(earlier).unfinished
    return Match(
        overlap,
        to_retain=[each for each in needed if each.status or each.id in unfinished],
        last=next((each for each in reversed(common) if not each.status), None),
        parent=common[-1].id if common and common[-1] is not earlier[-1] else None,
    )


def _end_of_answers(earlier: Sequence[Message]) -> int:
    """Return the number of messages up to the last answer."""
    return len(earlier) - sum(1 for _ in takewhile(is_from_client, reversed(earlier)))


def _common_messages(known: str, symbols: str, overlap: Overlap) -> list[int]:
    """Return the indexes of the session's messages that the request contains, in order.

    Of equal messages, these are the latest.
    """
    indexes: list[int] = []
    for index in range(len(known) - 1, overlap.begin - 1, -1):
        left = overlap.known - len(indexes)
        if left and known[index] == symbols[left - 1]:
            indexes.append(index)
    return indexes[::-1]


def is_repeated(
    earlier: Sequence[Message], sent: Sequence[OpenAIMessage], *, is_whole: bool
) -> bool:
    """Return whether a session ends with all messages of a request."""
    session, symbols = _compare(earlier, sent, is_whole=is_whole)
    if not is_whole and len(symbols) > len(session.symbols):
        return symbols.endswith(session.symbols)
    return session.symbols.endswith(symbols)


def _compare(
    earlier: Sequence[Message], sent: Sequence[OpenAIMessage], *, is_whole: bool
) -> tuple[_Session, str]:
    """Return a session and the symbols of a request: searching one string in another is fast."""
    ids = _ids_to_parse(sent)
    keys, sent_keys = _Keys(ids), _Keys(ids)
    symbols: dict[object, str] = {}
    known = "".join(
        symbols.setdefault(keys.of(to_openai(message)), chr(len(symbols) + 1))
        for message in earlier
    )
    unanswered = find_answered(earlier).unanswered if is_transcript(sent) else ()
    end = max((at for at, each in enumerate(earlier) if each.role == "assistant"), default=-1)
    session = _Session(
        messages=earlier,
        symbols=known,
        unanswered=[at for at, each in enumerate(earlier) if at > end or each.id in unanswered],
        is_whole=is_whole,
    )
    return session, "".join(symbols.get(sent_keys.of(message), UNKNOWN) for message in sent)


def _overlap_at_end(session: _Session, symbols: str, sent: Sequence[OpenAIMessage]) -> Overlap:
    """Return the overlap of the session's end with the request."""
    known = session.symbols
    search = symbols.find if session.is_whole else symbols.rfind
    skipped = search(known) if known else -1
    # A conversation that precedes the session is known to the client only; other messages are new.
    is_conversation = _has_answer(sent[:skipped]) and _has_answer(sent[skipped:][: len(known)])
    if skipped == 0 or (skipped > 0 and (is_conversation or not session.is_whole)):
        return Overlap(known=skipped + len(known), begin=0)
    for count in range(min(len(symbols), len(known)), 0, -1):
        if known.endswith(symbols[:count]):
            return Overlap(known=count, begin=len(known) - count)
    return Overlap(known=0, begin=len(known))


def _diverging_overlap(session: _Session, sent: str) -> Overlap:
    """Return the longest start of a transcript that the session contains in order, with gaps."""
    known = session.symbols
    overlap = _overlap_with_gaps(known, sent, 0)
    if session.is_whole:
        if overlap.begin == 0:
            return overlap
    # The transcript may begin before what was read. One equal message may be a coincidence.
    elif len(known) > 1 and (skipped := sent.find(known[:2])) > 0:
        unread = _overlap_with_gaps(known, sent, skipped)
        if unread.known > overlap.known:
            return unread
    # The request contains the last messages of a conversation, and not all of them.
    indexes = _common_messages(known, sent, overlap)
    return overlap._replace(begin=indexes[0]) if indexes else overlap


def _overlap_with_gaps(known: str, sent: str, skipped: int) -> Overlap:
    """Return the overlap from the first occurrence of a message on: it is the longest one."""
    begin = known.find(sent[skipped])
    if begin < 0:
        return Overlap(known=0, begin=len(known))
    count = skipped
    for symbol in known[begin:]:
        count += count < len(sent) and symbol == sent[count]
    return Overlap(known=count, begin=begin)


class _Keys:
    """Keys of messages, equal for messages with the same meaning.

    Clients return an answer with additional null fields, with its text in a part or stripped, and
    with its tool calls encoded again.
    """

    def __init__(self, ids: AbstractSet[str]) -> None:
        self._ids = ids
        # The stored arguments may contain more white space.
        self._left = 2 * MAX_PARSED_ARGUMENTS

    def of(self, message: OpenAIMessage) -> object:
        """Return the key of a message."""
        calls = tool_calls_of(message) if message["role"] == "assistant" else []
        content = message.get("content") or ""
        if isinstance(content, list) and all(type_of(part) == "text" for part in content):
            content = text_of(content)
        return (
            message["role"],
            content.strip() if isinstance(content, str) else _sorted_json(content),
            message.get("tool_call_id") or "",
            message["role"] == "user" and _sorted_json(message.get("name")),
            (calls and _sorted_json([self._call(call) for call in calls])) or "",
        )

    def _call(self, call: dict[str, Any]) -> object:
        function = call.get("function")
        if not isinstance(function, dict):
            return call
        arguments = _arguments_of(call)
        if str(call.get("id")) in self._ids and isinstance(arguments, str):
            self._left -= len(arguments)
            if self._left >= 0:
                arguments = _parsed(arguments)
        return call.get("id"), function.get("name"), arguments


def _ids_to_parse(sent: Sequence[OpenAIMessage]) -> set[str]:
    """Return the ids of the calls whose arguments are compared as JSON: the last ones of a request.

    Other calls of the session differ from them by their ids.
    """
    ids: set[str] = set()
    left = MAX_PARSED_ARGUMENTS
    for message in reversed(sent):
        for call in reversed(tool_calls_of(message)):
            left -= len(str(_arguments_of(call)))
            if left >= 0:
                ids.add(str(call.get("id")))
    return ids


def _arguments_of(call: dict[str, Any]) -> Any:
    """Return the arguments of a call; clients return absent ones as an empty object."""
    function = call.get("function")
    return (function.get("arguments") if isinstance(function, dict) else None) or "{}"


def _parsed(arguments: str) -> str:
    """Return the JSON of the arguments of a call in one form, or the text if it is not JSON."""
    with suppress(TypeError, ValueError, RecursionError):
        # orjson would round integers beyond 64 bits.
        return _sorted_json(json.loads(arguments, parse_float=_number))
    return arguments


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() and abs(number) <= MAX_EXACT_FLOAT else number


def _sorted_json(value: object) -> str:
    with suppress(TypeError):  # orjson rejects integers beyond 64 bits, but is ten times as fast.
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    return json.dumps(value, sort_keys=True)
