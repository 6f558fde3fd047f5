"""Which messages of a session belong together, as their ids tell."""

import random

import pytest

from groqchat.storage.exchanges import contexts, find_answered, name_messages
from groqchat.storage.message_ids import (
    answer_id,
    earlier_id,
    is_single,
    new_message_id,
    new_message_ids,
    new_single_id,
)
from groqchat.storage.messages import (
    INCOMPLETE,
    UNSTORED_FINISH_REASON,
    Message,
    Role,
    decode_member,
    encode_member,
)

ROLES: dict[str, Role] = {"Q": "user", "q": "user", "s": "system"}


def session(text: str) -> list[Message]:
    """Return a session from the names of its messages.

    `A1` answers `Q1`, `I1` is an incomplete answer, and `A2&1` answers `Q1` too. `B9&1` answers
    only a message of another request. Messages that `+` joins are those of one request. `q`, `a`
    and `s` are messages that were stored one by one.
    """
    ids: dict[str, str] = {}
    messages: list[Message] = []
    for step in text.split():
        name, *others = step.split("&")
        if step[0] in "ABI":
            own = answer_id(ids[name[1:]]) if name[1:] in ids else new_message_id()
            messages.append(
                Message(
                    id=own,
                    role="assistant",
                    content=name,
                    status=INCOMPLETE if step[0] == "I" else None,
                    answers=tuple(ids[each] for each in others),
                )
            )
            continue
        names = step.split("+")
        own_ids = [new_single_id()] if step[0] in "qas" else new_message_ids(len(names))
        for each, own in zip(names, own_ids, strict=True):
            ids[each[1:]] = own
            role = ROLES.get(each[0], "assistant")
            messages.append(Message(id=own, role=role, content=each))
    return messages


def names(messages: list[Message]) -> str:
    return " ".join(message.content for message in messages)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Q1 A1 Q2 A2", []),
        ("Q1", [""]),
        ("Q1 A1 Q2", ["Q1 A1"]),
        ("Q1 Q2 A2", ["Q2 A2"]),
        ("Q1 Q2 A1", ["Q1 A1"]),
        ("Q1 Q2 A1 A2", []),
        ("Q1 Q2 A2 Q3 A1", ["Q1 Q2 A2 A1"]),
        ("Q1+Q2 A2", []),
        ("Q0 Q1+Q2 A2", ["Q1 Q2 A2"]),
        ("Q0 Q2 A2&0", []),
        ("Q0+Q1 Q2 Q3 A3&0", ["Q0 Q3 A3"]),
        ("Q0+Q1 Q2 Q3 A3&1", ["Q1 Q3 A3"]),
        ("Q1+Q2 B9&1", ["Q1 B9"]),
        ("Q1+Q2 B9&2", ["Q2 B9"]),
        ("Q1+X1+Q2", [""]),
        ("Q1+X1+Q2 A2", []),
        ("X1+Q2 A2", []),
        ("Q1 I1", []),
        ("Q1 A1 A1", []),
        # The question of the answer is not a part of the messages.
        ("Q1 A0", ["A0"]),
        ("A9 Q1 A8", ["A9 A8"]),
        # Messages that were stored one by one.
        ("q1 a1 Q1", ["q1 a1"]),
        ("Q1 a1", ["a1", ""]),
        ("q1 a1 a2", ["q1 a1"]),
        ("Q1 q2 a2", ["q2 a2"]),
        ("q1 Q2 A2 a1", []),
        ("q1 Q2 A2", ["Q2 A2"]),
        ("s1 Q1 q2", ["s1 q2", "s1", ""]),
        ("s1 q1 a1", ["q1 a1"]),
        ("q1 q2 a2 q3", ["q2 a2"]),
    ],
)
def test_each_context_lacks_more_messages_without_an_answer(text: str, expected: list[str]) -> None:
    assert [names(each) for each in contexts(session(text))] == expected


def test_a_message_before_a_transcript_can_have_its_answer_in_it() -> None:
    messages = session("Q0 Q1+Q2 A2 Q3 A3")
    assert [names(each) for each in contexts(messages[:2], later=messages[2:])] == ["Q1"]


def test_only_a_complete_answer_ends_a_request() -> None:
    messages = session("Q1 I1 Q2 I2 A2 Q3 Q4 A4&3 q5 a5 Q6")
    by_id = {message.id: message.content for message in messages}
    unanswered, unfinished = (
        sorted(by_id[each] for each in ids) for ids in find_answered(messages)
    )
    assert (unanswered, unfinished) == (["Q6"], ["Q1", "Q6"])


def test_messages_of_other_programs_are_stored_one_by_one() -> None:
    ids = [f"{time:013x}{random.getrandbits(64):016x}" for time in range(3)]
    roles: list[Role] = ["user", "assistant", "user"]
    messages = [
        Message(id=own, role=role, content=role) for own, role in zip(ids, roles, strict=True)
    ]
    assert list(contexts(messages)) == [messages[:2]]
    assert all(map(is_single, ids))


def test_an_answer_names_the_messages_of_other_requests_and_no_others() -> None:
    messages = session("Q1+Q2+Q3 Q4 Q5+Q6+Q7")
    named = [*messages[:3], messages[3], messages[5]]
    names = name_messages(named)
    assert names == (f"{messages[0].id}+2", messages[3].id, messages[5].id)
    answer = Message(id=new_message_id(), role="assistant", content="", answers=names)
    unanswered = find_answered([*messages, answer]).unanswered
    assert unanswered == {messages[4].id, messages[6].id}


def test_the_messages_that_an_answer_names_are_stored() -> None:
    message = session("Q1 Q2 A2&1")[-1]
    member = encode_member(message)
    assert decode_member(member, message.score) == Message(
        id=message.id,
        role="assistant",
        content="A2",
        finish_reason=UNSTORED_FINISH_REASON,
        answers=message.answers,
    )
    assert encode_member(session("Q1 A1")[-1]).count(b"answers") == 0


def test_an_answer_repeats_the_random_digits_of_its_own_message() -> None:
    question = new_message_id()
    own, other = answer_id(question), answer_id(question, is_own=False)
    assert question < own < other
    assert own[13:] == question[13:]
    assert not is_single(other)


def test_answers_to_a_message_of_a_clock_that_is_ahead_are_not_a_part_of_its_request() -> None:
    ahead = earlier_id(new_message_id(), -86_400_000_000)
    ids = [answer_id(ahead) for _ in range(100)]
    assert len(set(ids)) > 90
    assert min(ids) > earlier_id(ahead, -1)


def test_the_ids_of_a_request_are_one_microsecond_apart_and_do_not_repeat() -> None:
    ids = new_message_ids(3)
    assert [earlier_id(each, -1) for each in ids[:-1]] == ids[1:]
    assert new_message_id() > ids[-1]


def test_the_ids_of_messages_that_are_stored_alone_differ_from_those_of_requests() -> None:
    assert not any(is_single(new_message_id()) for _ in range(100))
    assert all(is_single(new_single_id()) for _ in range(100))


def test_names_of_messages_that_another_program_has_written_are_ignored() -> None:
    names = '["x", 1, null, "0123456789abcdef0+x", "0123456789abcdef0+1"]'
    member = f'{{"id":"0123456789abcdef1","role":"assistant","content":"a","answers":{names}}}'
    message = decode_member(member.encode(), 1.0)
    assert message is not None
    assert message.answers == ("0123456789abcdef0+1",)
