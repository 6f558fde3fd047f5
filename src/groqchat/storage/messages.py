"""A message, its id, and its form as a member of a session's sorted set."""

import json
import logging
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import msgspec
import orjson

from groqchat.lenient_json import loads

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
# A member of a sorted set with its score.
Row: TypeAlias = tuple[bytes, float]


class Spoken(TypedDict):
    """A message as the model is given it."""

    role: Role
    content: str


ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}
# 13 hexadecimal digits of microseconds since the epoch, 4 random ones.
MESSAGE_ID = re.compile(r"[0-9a-f]{17}")
MICROS_DIGITS = 13
# Members of another program have longer ids, made from their content: an import may give
# thousands of them one time, and two must not share an id.
FOREIGN_DIGEST_BYTES = 8
MICROS_PER_S = 1_000_000

# Fields at these values are not stored; they are most of what is ever stored, and leaving
# them out keeps a message within 200 bytes of memory. Part of the storage format: changing
# one would change the meaning of messages written before.
UNSTORED_MODEL = "openai/gpt-oss-20b"
UNSTORED_FINISH_REASON = "stop"

# The status of an answer that was cut short, and the reason: it was stopped, or something failed.
INCOMPLETE = "incomplete"
STOPPED = "stopped"
BROKEN = "error"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The last second that 13 hexadecimal digits of microseconds can tell, in the year 2112.
MAX_SCORE_S = 4_503_599_627.0

# Looks at the types, and makes nothing of the other fields.
_CONTEXT = msgspec.json.Decoder(list[Spoken])

log = logging.getLogger(__name__)


class _Clock:
    """Unix time in microseconds that never repeats within the process."""

    def __init__(self) -> None:
        self._last = 0

    def micros(self) -> int:
        self._last = max(time.time_ns() // 1000, self._last + 1)
        return self._last


_clock = _Clock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation; `tokens` is what its whole turn used.

    `extra` holds further fields of Groq's wire format, such as the calls of tools.
    """

    id: str
    role: Role
    content: str
    model: str | None = None
    tokens: int | None = None
    finish_reason: str | None = None
    status: str | None = None
    extra: dict[str, Any] | None = None

    @property
    def score(self) -> float:
        """Unix time in seconds, exact to the microsecond."""
        return micros_of(self.id) / MICROS_PER_S

    @property
    def score_text(self) -> str:
        """The score as Redis is given it: the same number, in a quarter of the time of repr()."""
        return f"{micros_of(self.id)}e-6"

    @property
    def timestamp(self) -> str:
        """ISO 8601 with microseconds and offset."""
        return iso_time(micros_of(self.id))


def new_message_id() -> str:
    """Return an id that sorts behind every id this process made before."""
    return f"{_clock.micros():013x}{random.getrandbits(16):04x}"


def micros_of(message_id: str) -> int:
    """Return the microseconds since the epoch that a message id begins with."""
    return int(message_id[:MICROS_DIGITS], 16)


def iso_time(micros: int) -> str:
    """Return microseconds since the epoch as ISO 8601 with an explicit offset."""
    second, rest = divmod(micros, MICROS_PER_S)
    return f"{_iso_second(second)}.{rest:06d}+00:00"


# Most of the times that a service tells are of the last few seconds.
@lru_cache(maxsize=1024)
def _iso_second(second: int) -> str:
    return (EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")


def encode_member(message: Message) -> bytes:
    """Return the sorted set member of a message: compact JSON that starts with its id."""
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
    if message.extra is not None:
        fields["extra"] = message.extra
    try:
        return orjson.dumps(fields)
    except TypeError:
        # Numbers beyond 64 bits, half a character: what Python's own knows and clients send.
        return json.dumps(fields, separators=(",", ":")).encode()


def decode_member(member: bytes, score: float) -> Message | None:
    """Return the message of a member, whoever wrote it; None if it is none."""
    fields = _loads(member)
    if not isinstance(fields, dict) or not 0 <= score <= MAX_SCORE_S:
        return None
    named_role, content = fields.get("role"), fields.get("content")
    role = ROLES.get(named_role) if isinstance(named_role, str) else None
    if role is None or not isinstance(content, str):
        return None
    stored_id = fields.get("id")
    ours = isinstance(stored_id, str) and bool(MESSAGE_ID.fullmatch(stored_id))
    model = fields.get("model", UNSTORED_MODEL if ours else None)
    tokens = fields.get("tokens")
    finish_reason = fields.get("finish_reason")
    status, extra = fields.get("status"), fields.get("extra")
    if ours and finish_reason is None and role == "assistant":
        finish_reason = UNSTORED_FINISH_REASON
    return Message(
        id=row_id((member, score)),
        role=role,
        content=content,
        model=model if isinstance(model, str) else None,
        tokens=tokens if type(tokens) is int else None,
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        status=status if isinstance(status, str) else None,
        extra=extra if isinstance(extra, dict) else None,
    )


def _loads(member: bytes) -> object:
    """Parse a member, that of Python's json too, which writes half characters; None for none."""
    try:
        return loads(member)
    except ValueError:
        return None


def decode_context(members: Sequence[bytes], *, session_id: str) -> list[Spoken]:
    """Return what was said in members, without what only a history shows.

    Read at once, as one JSON array: that is a third of the cost of one by one.
    """
    try:
        spoken = _CONTEXT.decode(b"[%b]" % b",".join(members))
    except (ValueError, RecursionError):
        return _decode_each(members, session_id)
    # Joined, two halves of nonsense may make sense.
    return spoken if len(spoken) == len(members) else _decode_each(members, session_id)


def _decode_each(members: Sequence[bytes], session_id: str) -> list[Spoken]:
    """Return what was said in members of which not all are messages."""
    spoken: list[Spoken] = [
        {"role": ROLES[fields["role"]], "content": fields["content"]}
        for fields in map(_loads, members)
        if isinstance(fields, dict)
        and isinstance(fields.get("content"), str)
        and isinstance(fields.get("role"), str)
        and fields["role"] in ROLES
    ]
    if len(spoken) < len(members):
        warn_of_corrupt_members(len(members) - len(spoken), session_id)
    return spoken


def warn_of_corrupt_members(count: int, session_id: str) -> None:
    """Log that a session holds what is no message."""
    log.warning("skipped %d corrupt member(s) of session %s", count, session_id)


def rows_of(reply: Sequence[Any]) -> list[Row]:
    """Return the rows of a raw reply to ZRANGE WITHSCORES.

    RESP2 gives members and scores in turn, RESP3 in pairs.
    """
    paired = bool(reply) and isinstance(reply[0], list)
    pairs = reply if paired else zip(reply[::2], reply[1::2], strict=True)
    return [(member, float(score)) for member, score in pairs]


def row_id(row: Row) -> str:
    """Return the id in a member of ours, or one made from its score and content."""
    member = row[0]
    head = member[7 : 7 + MICROS_DIGITS + 4].decode(errors="replace")
    if member.startswith(b'{"id":"') and MESSAGE_ID.fullmatch(head):
        return head
    digest = blake2b(member, digest_size=FOREIGN_DIGEST_BYTES).hexdigest()
    return f"{row_micros(row):013x}{digest}"


def rows_before(rows: Sequence[Row], message_id: str) -> int:
    """Return how many of some rows in their order stand before a message of their session."""
    ids = [row_id(row) for row in rows]
    if message_id in ids:
        return ids.index(message_id)
    # It lies beyond them, or is gone.
    place = micros_of(message_id)
    return sum(row_micros(row) <= place for row in rows)


def row_micros(row: Row) -> int:
    """Return the time of a row in microseconds, within what a message id can hold."""
    return round(min(max(row[1], 0.0), MAX_SCORE_S) * MICROS_PER_S)


def index_beyond(
    message_id: str,
    rows: Sequence[Row],
    complete: bool,  # noqa: FBT001 - given by place
    *,
    forward: bool,
) -> int:
    """Return where, in rows read onwards from a message's time, what lies beyond it begins.

    Rows of one microsecond come in the order of their members. That is the order of the ids
    we made, but not of those derived for members of another program: so the message itself
    is looked for first. `complete` says that no further rows follow.
    """
    ids = [row_id(row) for row in rows]
    if message_id in ids:
        return ids.index(message_id) + 1
    micros = micros_of(message_id)
    same_time = [at for at in map(row_micros, rows) if (at <= micros if forward else at >= micros)]
    if len(same_time) == len(rows) and not complete:
        # The message may still come.
        return len(rows)
    # It is gone; what it would stand behind is told by the ids.
    return sum(
        found < message_id if forward else found > message_id for found in ids[: len(same_time)]
    )
