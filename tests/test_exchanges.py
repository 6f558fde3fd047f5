"""Which messages of a session belong together, as their ids tell."""

import random

import pytest

from groqchat.storage.exchanges import answered, exchanges
from groqchat.storage.message_ids import answer_id, earlier_id, new_message_id, new_message_ids
from groqchat.storage.messages import INCOMPLETE, Message


def message(message_id: str, content: str, role: str = "user", **fields: str) -> Message:
    return Message(id=message_id, role=role, content=content, **fields)  # type: ignore[arg-type] # only valid roles are passed


def session(*steps: str) -> list[Message]:
    """Return a session. `A1` answers `Q1`; messages that `+` joins are those of one request.

    `a` is the answer of another program, `I1` an incomplete answer to `Q1`.
    """
    ids: dict[str, str] = {}
    messages: list[Message] = []
    for step in steps:
        names = step.split("+")
        if step[0] in "AI":
            fields = {"status": INCOMPLETE} if step[0] == "I" else {}
            own = answer_id(ids[step[1:]]) if step[1:] in ids else new_message_id()
            messages.append(message(own, step, "assistant", **fields))
            continue
        for name, own in zip(names, new_message_ids(len(names)), strict=True):
            ids[name[1:]] = own
            role = "assistant" if name[0] == "a" else "user"
            messages.append(message(own, name, role))
    return messages


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("", ""),
        ("Q1 A1 Q2 A2", "Q1 A1 Q2 A2"),
        ("Q1", ""),
        ("Q1 A1 Q2", "Q1 A1"),
        ("Q1 Q2 A2", "Q2 A2"),
        ("Q1 Q2 A1", "Q1 A1"),
        ("Q1 Q2 A1 A2", "Q1 Q2 A1 A2"),
        ("Q1 Q2 A2 Q3 A1", "Q1 Q2 A2 A1"),
        ("Q1+Q2 A2", "Q1 Q2 A2"),
        ("Q0 Q1+Q2 A2", "Q1 Q2 A2"),
        ("Q1+a1+Q2", ""),
        ("Q1+a1+Q2 A2", "Q1 a1 Q2 A2"),
        ("a1+Q2 A2", "a1 Q2 A2"),
        ("Q1 I1", "Q1 I1"),
        ("Q1 A1 A1", "Q1 A1 A1"),
    ],
)
@pytest.mark.parametrize("is_whole", [False, True])
def test_messages_of_requests_without_an_answer_are_left_out(
    steps: str, expected: str, *, is_whole: bool
) -> None:
    messages = session(*steps.split())
    found = answered(messages, is_whole=is_whole)
    assert " ".join(each.content for each in found) == expected


@pytest.mark.parametrize(
    ("steps", "whole", "part"),
    [
        ("Q1 Q2 a", "Q1 Q2 a", "a"),
        ("Q1 a Q2 a", "Q1 a Q2 a", "a Q2 a"),
        ("a Q1 a", "a Q1 a", "a Q1 a"),
        ("Q1 Q2 A1 a", "Q1 A1 a", "Q1 A1 a"),
    ],
)
def test_an_answer_of_another_program_answers_the_messages_before_it(
    steps: str, whole: str, part: str
) -> None:
    messages = session(*steps.split())
    for is_whole, expected in ((True, whole), (False, part)):
        found = answered(messages, is_whole=is_whole)
        assert " ".join(each.content for each in found) == expected


def test_an_exchange_is_complete_with_a_complete_answer() -> None:
    found = exchanges(session("Q1", "I1", "Q2", "I2", "A2", "Q3", "Q4", "a"), is_whole=True)
    states = [(each.messages[0].content, each.has_answer, each.is_complete) for each in found]
    assert states == [
        ("Q1", True, False),
        ("Q2", True, True),
        ("Q3", True, False),
        ("Q4", True, False),
    ]


def test_messages_of_other_programs_have_longer_ids() -> None:
    messages = [
        message(f"{time:013x}{random.getrandbits(64):016x}", text, role)
        for time, (text, role) in enumerate([("Q", "user"), ("a", "assistant"), ("R", "user")])
    ]
    found = answered(messages, is_whole=True)
    assert [each.content for each in found] == ["Q", "a"]


def test_an_answer_repeats_the_random_digits_of_its_message() -> None:
    question = new_message_id()
    own = answer_id(question)
    assert own[13:] == question[13:]
    assert own > question


def test_an_answer_to_a_message_of_a_clock_that_is_ahead_is_not_one_of_its_request() -> None:
    ahead = earlier_id(new_message_id(), -86_400_000_000)
    assert answer_id(ahead) == earlier_id(ahead, -2)


def test_the_ids_of_a_request_are_one_microsecond_apart_and_do_not_repeat() -> None:
    ids = new_message_ids(3)
    assert [earlier_id(each, -1) for each in ids[:-1]] == ids[1:]
    assert new_message_id() > ids[-1]
