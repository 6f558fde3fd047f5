"""The body of a request within a session: its messages are replaced, other bytes are not changed.

Parsing and encoding the whole body again would change it: `1e999` would become `Infinity`, which
is not JSON, and long numbers and repeated fields would lose parts.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from groqchat.errors import InvalidField
from groqchat.services.openai.messages import INSTRUCTION_ROLES, OpenAIMessage
from groqchat.storage.messages import ROLES

WHITESPACE = re.compile(r"[ \t\n\r]*")
MESSAGES = "messages"
# Groq's API has about 40 fields. Each one takes a microsecond.
MAX_FIELDS = 1000
# A session contains as many messages at most after some thousand turns; each one takes 5 us.
MAX_MESSAGES = 10_000


def _finite(number: str) -> float:
    """Return a number of a message, which must fit into the history."""
    value = float(number)
    if not math.isfinite(value):
        raise InvalidField(message=f"{MESSAGES}: a number is too large", param=MESSAGES)
    return value


# Numbers outside of the messages need no conversion.
SKIPPING = json.JSONDecoder(parse_int=str, parse_float=str)
DECODING = json.JSONDecoder(parse_float=_finite)


class RequestBody:
    """A valid JSON object with a field `messages`, None if it has no such field."""

    def __init__(self, body: bytes) -> None:
        self._text = body.decode()
        self.messages: Any = None
        self._begin = self._end = 0
        # The text of each message of the request, by the id of its object in `messages`.
        self._texts: dict[int, str] = {}
        self._find_messages()

    def with_messages(self, messages: Sequence[OpenAIMessage]) -> bytes:
        """Return the body with other messages; those of the request are not encoded again."""
        texts = (self._texts.get(id(message)) or json.dumps(message) for message in messages)
        return f"{self._text[: self._begin]}[{','.join(texts)}]{self._text[self._end :]}".encode()

    def _find_messages(self) -> None:
        index = self._skip(0, after="{")
        fields = 0
        while self._text[index] != "}":
            fields += 1
            if fields > MAX_FIELDS:
                raise InvalidField(message=f"more than {MAX_FIELDS} fields", param=None)
            name, index = SKIPPING.raw_decode(self._text, index)
            index = self._skip(index, after=":")
            if name == MESSAGES:
                index = self._parse_messages(index)
            else:
                _, index = SKIPPING.raw_decode(self._text, index)
            index = self._skip(index, after=",")

    def _parse_messages(self, begin: int) -> int:
        if self._end:
            raise InvalidField(message=f"{MESSAGES}: must not be repeated", param=MESSAGES)
        self._begin = begin
        if self._text[begin] != "[":
            self.messages, self._end = DECODING.raw_decode(self._text, begin)
            return self._end
        self.messages = []
        index = self._skip(begin, after="[")
        while self._text[index] != "]":
            message, end = DECODING.raw_decode(self._text, index)
            self.messages.append(message)
            self._texts[id(message)] = self._text[index:end]
            index = self._skip(end, after=",")
        self._end = index + 1
        return self._end

    def _skip(self, index: int, *, after: str) -> int:
        """Return the index after white space, and after a character if it follows."""
        index = self._next(index)
        return self._next(index + 1) if self._text.startswith(after, index) else index

    def _next(self, index: int) -> int:
        found = WHITESPACE.match(self._text, index)
        return found.end() if found else index


def validated_messages(messages: object) -> list[OpenAIMessage]:
    """Return the messages of a request; raise InvalidField if they cannot be stored."""
    if not isinstance(messages, list) or not messages:
        raise InvalidField(message="messages: must be a non-empty list", param="messages")
    if len(messages) > MAX_MESSAGES:
        rule = f"must not contain more than {MAX_MESSAGES} messages"
        raise InvalidField(message=f"messages: {rule}", param="messages")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES.keys() | INSTRUCTION_ROLES:
            param = f"messages.{index}.role"
            raise InvalidField(message=f"{param}: must be a role that can be stored", param=param)
        for name, is_valid in (("tool_calls", _are_calls), ("tool_call_id", _is_id)):
            if not is_valid(message.get(name)):
                param = f"messages.{index}.{name}"
                raise InvalidField(message=f"{param}: has an invalid value", param=param)
    return messages


def _are_calls(value: object) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(call, dict) and _is_id(call.get("id")) for call in value)
    )


def _is_id(value: object) -> bool:
    return value is None or isinstance(value, str)
