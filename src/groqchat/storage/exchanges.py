"""Which answer belongs to which messages of a session, as their ids tell.

The ids of the messages of one request, and of its answer, end with the same digits
(`message_ids.py`). Those of the request are one microsecond apart; the answer follows later. An
answer names the messages of other requests that it answers too (`Message.answers`): `ID`, or `ID+2`
together with the two messages after it in its request. So it is known what has an answer, even if
requests overlap.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from groqchat.storage.message_ids import MICROS_DIGITS, earlier_id, is_single
from groqchat.storage.messages import Message, is_from_client


class Answered(NamedTuple):
    """The ids of the messages of requests that have no answer, and of those without a complete one.

    Before an answer is complete, the request may still run, or be attempted again.
    """

    unanswered: set[str]
    unfinished: set[str]


def find_answered(messages: Sequence[Message]) -> Answered:
    """Return which messages of a part of a session have an answer in this part.

    Messages that were stored one by one belong to no request, and are in neither set.
    """
    answered: set[str] = set()
    finished: set[str] = set()
    sent: set[str] = set()
    # The latest request with these digits.
    by_digits: dict[str, list[str]] = {}
    for group in _groups(messages):
        last = group[-1]
        if any(map(is_from_client, group)):
            by_digits[last.id[MICROS_DIGITS:]] = [message.id for message in group]
            sent.update(message.id for message in group)
            continue
        ids = [*by_digits.get(last.id[MICROS_DIGITS:], ()), *_named_ids(last.answers)]
        answered.update(ids)
        if last.status is None:
            finished.update(ids)
    return Answered(sent - answered, sent - finished)


def contexts(
    messages: Sequence[Message],
    *,
    needed: Sequence[Message] = (),
    later: Sequence[Message] = (),
) -> Iterator[list[Message]]:
    """Yield parts of the messages, each if it is shorter than the one before.

    The first part lacks the messages of requests that have no answer, also none among the `later`
    messages of the session. The next one also lacks messages that were stored one by one, except
    each message with its answer. The last one also lacks system messages. All of them contain the
    `needed` messages, except user messages without an answer that belong to other requests than the
    rest of them.
    """
    systems = {message.id for message in messages if message.role == "system"}
    removed: set[str] = set()
    unanswered = find_answered([*messages, *later]).unanswered
    own = {each.id[MICROS_DIGITS:] for each in needed if each.role != "user"}
    kept = {
        each.id
        for each in needed
        if each.role != "user" or each.id not in unanswered or each.id[MICROS_DIGITS:] in own
    }
    for more in (unanswered, _unpaired_singles(messages), systems):
        removed |= more - kept
        found = [message for message in messages if message.id not in removed]
        if len(found) < len(messages):
            yield found
            messages = found


def is_answer_to(answer: Message, message: Message) -> bool:
    """Return whether a message of the model answers another message."""
    has_its_digits = answer.id[MICROS_DIGITS:] == message.id[MICROS_DIGITS:]
    return has_its_digits or message.id in _named_ids(answer.answers)


def name_messages(messages: Sequence[Message]) -> tuple[str, ...]:
    """Return names of messages of other requests, for `Message.answers`."""
    groups = _groups(messages)
    return tuple(
        f"{group[0].id}+{len(group) - 1}" if len(group) > 1 else group[0].id for group in groups
    )


def _named_ids(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        first, _, more = name.partition("+")
        for micros in range(int(more or 0) + 1):
            yield earlier_id(first, -micros)


def _unpaired_singles(messages: Sequence[Message]) -> set[str]:
    """Return the messages that were stored one by one, except each message with its answer.

    An answer belongs to the message before it: Groq may have rejected the ones before that.
    """
    unpaired: set[str] = set()
    asked: str | None = None
    for message in messages:
        if not is_single(message.id) or message.role == "system":
            continue
        unpaired.add(message.id)
        if message.role != "assistant":
            asked = message.id
        elif asked is not None:
            unpaired -= {asked, message.id}
            asked = None
    return unpaired


def _groups(messages: Sequence[Message]) -> list[list[Message]]:
    """Return messages in groups: those of one request are together."""
    groups: list[list[Message]] = []
    latest: dict[str, list[Message]] = {}
    for message in messages:
        if is_single(message.id):
            continue
        digits = message.id[MICROS_DIGITS:]
        group = latest.get(digits)
        if group and earlier_id(message.id, 1) == group[-1].id:
            group.append(message)
        else:
            latest[digits] = [message]
            groups.append(latest[digits])
    return groups
