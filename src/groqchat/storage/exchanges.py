"""Exchanges: the messages of one request and their answers, as their ids tell.

The ids of these messages end with the same digits (`message_ids.py`). Those of one request are one
microsecond apart; an answer follows later. So it is known what an answer belongs to, even if other
requests have stored messages in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from groqchat.storage.message_ids import MICROS_DIGITS, earlier_id
from groqchat.storage.messages import Message, is_question


@dataclass(slots=True)
class Exchange:
    """The messages of one request, and which answers they have.

    `is_complete`: the request has a complete answer. Before that, it may still run, or be attempted
    again.
    """

    messages: list[Message]
    has_answer: bool = False
    is_complete: bool = False


def exchanges(messages: Sequence[Message], *, is_whole: bool) -> list[Exchange]:
    """Return the exchanges of a part of a session, or of a whole one.

    An answer that belongs to none of them answers the messages directly before it: another program
    has stored it. The first answer of a part may also belong to messages before this part.
    """
    found: list[Exchange] = []
    latest: dict[str, Exchange] = {}
    # Those since the last answer.
    pending: list[Exchange] = []
    is_first = True
    for group in _groups(messages):
        last = group[-1]
        if any(map(is_question, group)):
            exchange = Exchange(group)
            found.append(exchange)
            pending.append(exchange)
            latest[last.id[MICROS_DIGITS:]] = exchange
            continue
        answered = latest.get(last.id[MICROS_DIGITS:])
        if answered is not None:
            answered.has_answer = True
            answered.is_complete |= last.status is None
        elif is_whole or not is_first:
            for each in pending:
                each.has_answer = True
        pending.clear()
        is_first = False
    return found


def answered(messages: Sequence[Message], *, is_whole: bool) -> list[Message]:
    """Return messages without those of requests that have no answer."""
    without_answer = {
        message.id
        for exchange in exchanges(messages, is_whole=is_whole)
        if not exchange.has_answer
        for message in exchange.messages
    }
    return [message for message in messages if message.id not in without_answer]


def _groups(messages: Sequence[Message]) -> list[list[Message]]:
    """Return messages in groups: those of one request are together."""
    groups: list[list[Message]] = []
    latest: dict[str, list[Message]] = {}
    for message in messages:
        digits = message.id[MICROS_DIGITS:]
        group = latest.get(digits)
        if group and earlier_id(message.id, 1) == group[-1].id:
            group.append(message)
        else:
            latest[digits] = [message]
            groups.append(latest[digits])
    return groups
