"""A message, and its encoding as a member of a session's sorted set."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import msgspec
import orjson

from groqchat.lenient_json import loads, loads_exact
from groqchat.storage.keys import Command, session_key, split_words
from groqchat.storage.message_ids import (
    ID_DIGITS,
    MAX_SCORE_S,
    MESSAGE_ID,
    MICROS_DIGITS,
    MICROS_PER_S,
    iso_time,
    micros_of,
)

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
# A member of a sorted set with its score.
ScoredMember: TypeAlias = tuple[bytes, float]


class PromptMessage(TypedDict):
    """A message as the model receives it."""

    role: Role
    content: str


ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}
# The ids of members that another program wrote are longer and derived from their content: an import
# may write thousands of members with one timestamp, and their ids must differ.
FOREIGN_DIGEST_BYTES = 8
# Every member that this service wrote starts with these bytes, followed by the id.
ID_PREFIX = b'{"id":"'
ID_END = len(ID_PREFIX) + MICROS_DIGITS + 4

# Fields with these values are not stored. Most messages have these values, and leaving them out
# limits the memory of a short message to about 200 bytes. They are part of the storage format: a
# change would change the meaning of stored messages.
UNSTORED_MODEL = "openai/gpt-oss-20b"
UNSTORED_FINISH_REASON = "stop"

# The status of an answer that is cut short.
INCOMPLETE = "incomplete"
# The finish reasons of such an answer: a client stopped the turn, or it failed.
STOPPED = "stopped"
FAILED = "error"

# The messages that a turn reads together with its first write. Even the longest messages add up
# to only a few MB; a whole context could be a hundred times as large.
FIRST_CONTEXT = 50

# A name in `Message.answers`, see `exchanges.py`.
MESSAGE_NAME = re.compile(r"[0-9a-f]{17}(\+[0-9]{1,6})?")

# The smallest float that can be a rounded integer: orjson parses integers of 64 bits exactly.
MIN_INEXACT = 2.0**63

# Checks the types of role and content and skips the other fields.
_PROMPT_MESSAGES = msgspec.json.Decoder(list[PromptMessage])

log = logging.getLogger(__name__)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a session; `tokens` counts the tokens of its whole turn.

    `extra` contains further fields of OpenAI's message format, such as tool calls. `turn_id`: the
    turn of an answer, if a further attempt at the turn may find it. `parent`: the id of the message
    that it follows, if that is not the one before it. `answers`: messages of other requests that it
    answers too, see `exchanges.py`. `is_sent`: a client has sent it although it is a message of the
    model, for example in a transcript.
    """

    id: str
    role: Role
    content: str
    model: str | None = None
    tokens: int | None = None
    finish_reason: str | None = None
    status: str | None = None
    extra: dict[str, Any] | None = None
    turn_id: str | None = None
    parent: str | None = None
    answers: tuple[str, ...] = ()
    is_sent: bool = False

    @property
    def score(self) -> float:
        """Unix time in seconds, exact to the microsecond."""
        return micros_of(self.id) / MICROS_PER_S

    @property
    def score_text(self) -> str:
        """The score as sent to Redis, see `score_text`; each turn needs it three times."""
        return f"{int(self.id[:MICROS_DIGITS], 16)}e-6"

    @property
    def timestamp(self) -> str:
        """ISO 8601 with microseconds and offset."""
        return iso_time(micros_of(self.id))


def encode_member(message: Message) -> bytes:
    """Return the sorted set member of a message: compact JSON that starts with the id."""
    fields: dict[str, object] = {
        "id": message.id,
        "role": message.role,
        "content": message.content,
    }
    if message.model != UNSTORED_MODEL:
        fields["model"] = message.model
    if message.tokens is not None:
        fields["tokens"] = message.tokens
    if message.finish_reason not in {None, UNSTORED_FINISH_REASON}:
        fields["finish_reason"] = message.finish_reason
    if message.status is not None:
        fields["status"] = message.status
    if message.turn_id is not None:
        fields["turn_id"] = message.turn_id
    if message.parent is not None or message.answers or message.is_sent:
        fields.update(_relations(message))
    if message.extra is not None:
        fields["extra"] = message.extra
    try:
        return orjson.dumps(fields)
    except TypeError:
        # Some clients send numbers beyond 64 bits or lone surrogates; orjson does not encode them.
        return json.dumps(fields, separators=(",", ":")).encode()


def _relations(message: Message) -> dict[str, object]:
    """Return the fields that few messages have, which relate them to others."""
    fields = {
        "parent": message.parent,
        "answers": message.answers or None,
        "sent": message.is_sent or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def decode_member(member: bytes, score: float) -> Message | None:
    """Return the message of a member, whichever program wrote it; None if it is not a message."""
    fields = _loads(member)
    if not isinstance(fields, dict) or not 0 <= score <= MAX_SCORE_S:
        return None
    role_name, content = fields.get("role"), fields.get("content")
    role = ROLES.get(role_name) if isinstance(role_name, str) else None
    if role is None or not isinstance(content, str):
        return None
    stored_id = fields.get("id")
    is_native = isinstance(stored_id, str) and bool(MESSAGE_ID.fullmatch(stored_id))
    model = fields.get("model", UNSTORED_MODEL if is_native else None)
    tokens = fields.get("tokens")
    finish_reason = fields.get("finish_reason")
    status, extra = fields.get("status"), fields.get("extra")
    turn_id, answers = fields.get("turn_id"), fields.get("answers")
    parent = fields.get("parent")
    if is_native and finish_reason is None and role == "assistant":
        finish_reason = UNSTORED_FINISH_REASON
    return Message(
        id=member_id((member, score)),
        role=role,
        content=content,
        model=model if isinstance(model, str) else None,
        tokens=tokens if type(tokens) is int else None,
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        status=status if isinstance(status, str) else None,
        extra=_exact_extra(extra, member) if isinstance(extra, dict) else None,
        turn_id=turn_id if isinstance(turn_id, str) else None,
        parent=parent if isinstance(parent, str) else None,
        answers=tuple(filter(_is_name, answers)) if isinstance(answers, list) else (),
        is_sent=fields.get("sent") is True,
    )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and MESSAGE_NAME.fullmatch(name) is not None


def _exact_extra(extra: dict[str, Any], member: bytes) -> dict[str, Any]:
    """Return the extra fields of a member with exact integers.

    orjson returns an integer beyond 64 bits as a float. Only a member with such a number is parsed
    again.
    """
    if _has_inexact_number(extra):
        with suppress(ValueError):
            exact: dict[str, Any] = loads_exact(member)["extra"]
            return exact
    return extra


def _has_inexact_number(fields: dict[str, Any]) -> bool:
    """Return whether JSON contains a float that can be a rounded integer, at any depth."""
    containers: list[Any] = [fields]
    # The list grows while it is read: this is twice as fast as a stack.
    for container in containers:
        for value in container.values() if type(container) is dict else container:
            kind = type(value)
            if kind is dict or kind is list:
                containers.append(value)
            elif kind is float and abs(value) >= MIN_INEXACT:
                return True
    return False


def _loads(member: bytes) -> object:
    """Parse a member; lone surrogates, which Python's json module writes, are accepted.

    Returns None if the member is not JSON.
    """
    try:
        return loads(member)
    except ValueError:
        return None


def decode_context(members: Sequence[bytes], *, session_id: str) -> list[PromptMessage]:
    """Return role and content of members for a prompt.

    Decodes all members as one JSON array, three times as fast as one by one.
    """
    try:
        messages = _PROMPT_MESSAGES.decode(b"[%b]" % b",".join(members))
    except (ValueError, RecursionError):
        return _decode_each(members, session_id)
    # Two corrupt members can be valid JSON when they are joined.
    return messages if len(messages) == len(members) else _decode_each(members, session_id)


def _decode_each(members: Sequence[bytes], session_id: str) -> list[PromptMessage]:
    """Decode members one at a time and skip those that are not messages."""
    messages: list[PromptMessage] = [
        {"role": ROLES[fields["role"]], "content": fields["content"]}
        for fields in map(_loads, members)
        if isinstance(fields, dict)
        and isinstance(fields.get("content"), str)
        and isinstance(fields.get("role"), str)
        and fields["role"] in ROLES
    ]
    if len(messages) < len(members):
        warn_about_corrupt_members(len(members) - len(messages), session_id)
    return messages


def warn_about_corrupt_members(count: int, session_id: str) -> None:
    """Log that a session contains members that are not messages."""
    log.warning("skipped %d corrupt member(s) of session %s", count, session_id)


def scored_members(reply: Sequence[Any]) -> list[ScoredMember]:
    """Return the members and scores of a raw reply to ZRANGE WITHSCORES.

    RESP2 returns members and scores alternately, RESP3 returns pairs.
    """
    is_paired = bool(reply) and isinstance(reply[0], list)
    pairs = reply if is_paired else zip(reply[::2], reply[1::2], strict=True)
    return [(member, float(score)) for member, score in pairs]


def member_id(scored: ScoredMember) -> str:
    """Return the message id in a member, or an id derived from its score and content."""
    member = scored[0]
    stored_id = member[len(ID_PREFIX) : ID_END].decode(errors="replace")
    if member.startswith(ID_PREFIX) and MESSAGE_ID.fullmatch(stored_id):
        return stored_id
    digest = blake2b(member, digest_size=FOREIGN_DIGEST_BYTES).hexdigest()
    return f"{member_micros(scored):013x}{digest}"


def member_micros(scored: ScoredMember) -> int:
    """Return the time of a member in microseconds, clamped to the range of message ids."""
    return round(min(max(scored[1], 0.0), MAX_SCORE_S) * MICROS_PER_S)


def first_read(
    session_id: str,
    context: int,
    user_message: Message | None = None,
    *,
    before: Message | None,
) -> list[Command]:
    """Return the command that reads the context, or the command that counts the user message.

    With `before`, the context precedes this message, the latest message first: an earlier attempt
    at a turn may have stored it, and others may have followed.
    """
    key = session_key(session_id)
    count = min(context, FIRST_CONTEXT)
    if context and before:
        start, limits = f"({before.score_text}", ("LIMIT", 0, count)
        return [("ZRANGE", key, start, "-inf", "BYSCORE", "REV", *limits)]
    if context:
        return [("ZRANGE", key, -count, -1)]
    if user_message is None:
        return []
    score = user_message.score_text
    return [("ZCOUNT", key, score, score)]


def add_members(key: str, messages: Sequence[Message], members: Sequence[bytes]) -> list[Command]:
    """Return the commands that add encoded messages to a session."""
    if len(messages) == 1:
        return [("ZADD", key, messages[0].score_text, members[0])]
    scored: list[str | bytes] = []
    for message, member in zip(messages, members, strict=True):
        scored += (message.score_text, member)
    return [("ZADD", key, *words) for words in split_words(scored)]


def is_from_client(message: Message) -> bool:
    """Return whether a client has sent a message, and not the model."""
    return message.role != "assistant" or message.is_sent


def of_service(message: Message | None) -> Message | None:
    """Return the message if this service has stored it: its score is exact to the microsecond."""
    return message if message is not None and len(message.id) == ID_DIGITS else None


def size_of(messages: Sequence[PromptMessage]) -> int:
    """Return the size of the texts of messages in bytes."""
    return sum(len(message["content"].encode()) for message in messages)
