"""Which messages of a request its session contains already."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from groqchat.services.openai import overlaps
from groqchat.services.openai.messages import to_message
from groqchat.services.openai.overlaps import (
    MAX_PARSED_ARGUMENTS,
    find_overlap,
    is_repeated,
    match_session,
)
from groqchat.storage.messages import Message
from tests.support.openai_messages import answer, result, user


def to_stored(messages: Sequence[dict[str, Any]]) -> list[Message]:
    """Return messages that were stored one by one."""
    return [to_message(each, None, message_id=f"{at:013x}8000") for at, each in enumerate(messages)]


def overlap_of(
    earlier: Sequence[dict[str, Any]], sent: Sequence[dict[str, Any]], *, is_whole: bool
) -> tuple[int, int]:
    """Return the overlap of a request with a session of messages that were stored one by one."""
    stored = [
        to_message(each, None, message_id=f"{at:013x}8000") for at, each in enumerate(earlier)
    ]
    return find_overlap(stored, sent, is_whole=is_whole)


@pytest.mark.parametrize(
    ("earlier", "sent", "overlap"),
    [
        ([], [user("a")], (0, 0)),
        ([user("a"), answer("b")], [user("c")], (0, 2)),
        ([user("a"), answer("b")], [user("a")], (0, 2)),
        ([user("a"), answer("b")], [user("a"), answer("b"), user("c")], (2, 0)),
        ([user("x"), answer("y"), user("a")], [user("a")], (1, 2)),
        # The request repeats the session, and then itself.
        ([user("a")], [user("a"), user("a")], (1, 0)),
        ([user("a")], [user("a"), user("a"), user("b")], (1, 0)),
        # The transcript is longer than the stored messages: the session, or its page, starts later.
        (
            [user("c"), answer("d")],
            [user("a"), answer("b"), user("c"), answer("d"), user("e")],
            (4, 0),
        ),
        # A new message precedes a message that the client repeats.
        ([user("a")], [user("document"), user("a")], (0, 1)),
        ([user("a"), answer("b")], [user("x"), user("a"), answer("b"), user("c")], (0, 2)),
        # Clients return an answer in a modified form.
        (
            [user("a"), answer("", "1")],
            [user("a"), {**answer(None, "1", arguments='{"a": 1}'), "refusal": None}, result("1")],
            (2, 0),
        ),
        (
            [user("a"), answer("b")],
            [user("a"), {**answer("b"), "reasoning": "hm"}, user("c")],
            (2, 0),
        ),
        (
            [user("a"), answer("b")],
            [user("a"), {**answer(None), "content": [{"type": "text", "text": "b\n"}]}, user("c")],
            (2, 0),
        ),
        # The transcript diverges: an answer is regenerated, stopped, edited, or without tool calls.
        (
            [user("a"), answer("b"), user("c"), answer("d")],
            [user("a"), answer("b"), user("c")],
            (3, 0),
        ),
        (
            [user("a"), answer("b"), user("c"), answer("d"), answer("d again")],
            [user("a"), answer("b"), user("c"), answer("d again"), user("e")],
            (4, 0),
        ),
        ([user("a"), answer("bcd")], [user("a"), answer("b"), user("c")], (1, 0)),
        ([user("a"), answer("", "1")], [user("a"), answer(None, "2"), result("2")], (1, 0)),
        (
            [user("x"), answer("y"), user("a"), answer("", "1"), result("1"), answer("b")],
            [user("a"), answer("b"), user("c")],
            (2, 2),
        ),
        # A coincidental match at the end of the session counts less.
        (
            [user("yes"), answer("a"), user("c"), answer("d"), user("yes")],
            [user("yes"), answer("a"), user("c"), answer("d2"), user("e")],
            (3, 0),
        ),
        (
            [user("hi"), answer("x"), user("hi"), answer("y")],
            [user("hi"), answer("z"), user("q")],
            (1, 0),
        ),
        # New messages are not known, even if one of them equals a stored message.
        (
            [user("hi"), answer("hello"), user("continue"), answer("more"), user("thanks")],
            [user("Tell me X"), answer("X is"), user("continue")],
            (0, 5),
        ),
        (
            [user("hi"), answer("hello"), user("continue"), answer("more")],
            [user("brand new"), answer("hello"), user("and")],
            (0, 4),
        ),
        # A prefix of the requested answer does not make a request a transcript.
        ([user("x"), answer("y"), user("yes"), answer("z")], [user("yes"), answer("{")], (0, 4)),
        ([user("yes"), answer("z")], [{**user("yes"), "name": "Al"}], (0, 2)),
        ([{**user("yes"), "name": "Bob"}], [{**user("yes"), "name": "Al"}], (0, 1)),
    ],
)
def test_the_overlap_contains_messages_with_the_same_meaning(
    earlier: list[dict[str, Any]], sent: list[dict[str, Any]], overlap: tuple[int, int]
) -> None:
    assert overlap_of(earlier, sent, is_whole=True) == overlap


def test_a_repeated_exchange_does_not_hide_a_new_message() -> None:
    exchanges = [user("a"), answer("b"), user("c"), answer("d"), user("a"), answer("b")]
    overlap = overlap_of(exchanges, [user("a"), answer("b"), user("c")], is_whole=True)
    assert overlap == (2, 4)


def test_a_common_first_message_of_a_part_of_a_session_may_be_a_coincidence() -> None:
    earlier = [user("a"), answer("b"), user("c"), answer("d")]
    transcript = [user("a"), answer("x"), user("y")]
    assert overlap_of(earlier, transcript, is_whole=True) == (1, 0)
    assert overlap_of(earlier, transcript, is_whole=False) == (0, 4)


@pytest.mark.parametrize(
    ("repeated", "known"),
    [('{"a": 123456789012345678901}', 2), ('{"a":123456789012345678902}', 0)],
)
def test_arguments_are_compared_with_exact_integers(repeated: str, known: int) -> None:
    stored = answer("", "1", arguments='{"a":123456789012345678901}')
    request = [user("a"), answer("", "1", arguments=repeated)]
    known_of, _ = overlap_of([user("a"), stored], request, is_whole=True)
    assert known_of == known


def test_arguments_with_a_lone_surrogate_are_compared_as_json() -> None:
    stored, repeated = (
        answer("", "1", arguments=text) for text in ('{"a":"\\ud800"}', '{"a": "\\uD800"}')
    )
    assert overlap_of([user("a"), stored], [user("a"), repeated], is_whole=True) == (2, 0)


@pytest.mark.parametrize(
    ("stored", "repeated"),
    [('{"a": 1.0}', '{"a":1}'), ("", "{}"), ('{"a": 1, "b": 2}', '{"b":2,"a":1}')],
)
def test_arguments_that_a_client_encodes_again_are_equal(stored: str, repeated: str) -> None:
    session = [user("a"), answer("", "1", arguments=stored)]
    request = [user("a"), answer("", "1", arguments=repeated), result("1")]
    assert overlap_of(session, request, is_whole=True) == (2, 0)


def test_many_arguments_are_compared_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(overlaps, "_parsed", parsed.append)
    calls = [answer("", str(at), arguments="[%s]" % ("9" * 4000)) for at in range(1000)]
    overlap_of(calls, [user("a"), answer("b"), user("c")], is_whole=False)
    assert parsed == []
    assert overlap_of(calls, [*calls, user("a")], is_whole=True) == (1000, 0)
    assert sum(map(len, parsed)) <= 2 * MAX_PARSED_ARGUMENTS


def test_the_end_of_a_long_session_is_the_end_of_the_messages_that_repeat_it() -> None:
    transcript = [user("ping"), answer("pong")] * 600
    earlier = transcript[-1000:]
    assert overlap_of(earlier, [*transcript, user("a")], is_whole=False) == (1200, 0)


def test_many_equal_messages_are_compared_fast() -> None:
    earlier = [answer("first"), *[user("")] * 999]
    assert overlap_of(earlier, [user("")] * 100_000, is_whole=True) == (999, 1)


def exchanges(*texts: str) -> list[dict[str, Any]]:
    """Return user messages and answers in turn."""
    return [(answer if at % 2 else user)(text) for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("earlier", "sent", "known"),
    [
        # A part of the session, and a new message that equals an older one.
        (exchanges("start", "yes?", "hi", "yes?"), [answer("yes?"), user("hi")], 1),
        (
            exchanges("q", "a", "ok", "b", "q", "a"),
            [*exchanges("q", "a"), user("ok"), user("and then?")],
            2,
        ),
        # The message after it has failed, and the client has dropped it.
        (
            [*exchanges("q", "a", "q", "a", "q", "a"), user("failed")],
            exchanges("q", "a", "q"),
            2,
        ),
        # Two clients have continued the same exchange.
        (
            exchanges("hi", "hello", "q", "a", "more", "b", "thanks", "bye"),
            exchanges("hi", "hello", "thanks"),
            2,
        ),
        # The session has no answer to the message yet.
        ([*exchanges("hi", "hello", "q", "a"), user("q2")], exchanges("hi", "hello", "q2"), 3),
        (
            [*exchanges("hi", "hello"), user("q"), user("q2")],
            [*exchanges("hi", "hello"), user("q"), user("edited")],
            3,
        ),
        # The end of the session equals the start of a transcript that diverges later.
        (
            exchanges("hi", "hello", "q", "a", "hi", "hello"),
            exchanges("hi", "hello", "q", "stopped", "more"),
            3,
        ),
        # A message that failed is in a conversation that another program has led.
        ([user("hi")], exchanges("x", "y", "hi"), 0),
        # The last answer is regenerated.
        (exchanges("hi", "hello", "q", "a"), exchanges("hi", "hello", "q"), 3),
        (exchanges("hi", "hello", "q", "a"), [answer("hello"), user("q")], 2),
    ],
)
def test_a_new_message_is_known_only_if_it_repeats_the_last_exchange(
    earlier: list[dict[str, Any]], sent: list[dict[str, Any]], known: int
) -> None:
    assert overlap_of(earlier, sent, is_whole=True)[0] == known


def test_a_part_of_a_session_that_starts_with_an_answer_is_known() -> None:
    calls = [answer("", "1"), result("1"), answer("sunny")]
    earlier = [*exchanges("a", "b"), user("c"), *calls, *exchanges("other", "x")]
    assert overlap_of(earlier, [*calls, user("d")], is_whole=True) == (3, 3)
    assert overlap_of(earlier, [answer("sunny"), user("d")], is_whole=True) == (1, 5)


def test_a_transcript_may_begin_before_what_was_read() -> None:
    transcript = exchanges(*map(str, range(998)))
    session = [*transcript[:-1], *[answer(f"regenerated {number}") for number in range(5)]]
    request = [*transcript[:-1], answer("regenerated 4"), user("new")]
    assert overlap_of(session[-1000:], request, is_whole=False) == (998, 0)
    assert overlap_of(session[-999:], request[:-2], is_whole=False) == (997, 0)


def test_the_last_answer_of_a_transcript_that_is_longer_than_what_was_read_is_regenerated() -> None:
    transcript = exchanges(*map(str, range(1102)))
    assert overlap_of(transcript[-1000:], transcript[:1101], is_whole=False) == (1101, 0)
    assert overlap_of(transcript[-3:], transcript[:1101], is_whole=False) == (1101, 0)


def test_a_transcript_that_is_longer_than_what_was_read_may_diverge() -> None:
    transcript = exchanges(*map(str, range(2000)))
    earlier = [*transcript[-999:], user("other")]
    assert overlap_of(earlier, [*transcript, user("new")], is_whole=False) == (2000, 0)


@pytest.mark.parametrize("parent", [1, None])
def test_an_edited_message_is_known_if_it_follows_the_same_message(parent: int | None) -> None:
    stored = to_stored(exchanges("hi", "hello", "q", "a", "edited", "b"))
    if parent is not None:
        stored[4] = structs.replace(stored[4], parent=stored[parent].id)
    sent = exchanges("hi", "hello", "edited")
    assert find_overlap(stored, sent, is_whole=True).known == (3 if parent else 2)
    sent = exchanges("hi", "hello", "edited", "b", "more")
    assert find_overlap(stored, sent, is_whole=True).known == 4
    match = match_session(stored, sent, before=None, is_whole=True)
    assert match.parent is None


def test_only_the_messages_of_a_branch_are_known() -> None:
    stored = to_stored(exchanges("hi", "hello", "q", "a", "edited", "b", "c", "d", "thanks", "bye"))
    stored[4] = structs.replace(stored[4], parent=stored[1].id)
    sent = [*exchanges("hi", "hello", "edited"), user("thanks")]
    assert find_overlap(stored, sent, is_whole=True).known == 3


def test_messages_of_concurrent_requests_are_not_compared() -> None:
    stored = to_stored([*exchanges("hi", "hello"), user("failed"), user("concurrent")])
    stored[1] = structs.replace(stored[1], is_sent=False)
    sent = [*exchanges("hi", "hello"), user("failed"), user("concurrent")]
    match = match_session(stored, sent, before=stored[3].id, is_whole=True)
    assert match.overlap == (3, 0)
    assert match_session(stored, sent, before="", is_whole=True).overlap == (2, 0)


def test_a_request_is_repeated_if_the_session_ends_with_all_of_it() -> None:
    stored = to_stored([user("hi")])
    assert is_repeated(stored, [user("hi")], is_whole=True)
    assert not is_repeated(stored, [user("x"), user("hi")], is_whole=True)
    assert is_repeated(stored, [user("x"), user("hi")], is_whole=False)


def test_the_same_arguments_are_parsed_in_the_request_and_in_the_session() -> None:
    first = answer("", "1", arguments=json.dumps({"a": "x" * 30_000}))
    unknown = answer("", "2", arguments=json.dumps("y" * 40_000))
    request = [user("a"), first, result("1"), unknown, result("2")]
    assert overlap_of([user("a"), first, result("1")], request, is_whole=True) == (3, 0)


def test_the_last_answer_after_an_edited_message_can_be_regenerated() -> None:
    stored = to_stored(exchanges("hi", "hello", "q", "a", "edited", "b", "more", "c"))
    sent = exchanges("hi", "hello", "edited", "b", "more")
    assert find_overlap(stored, sent, is_whole=True).known == 5
    match = match_session(stored, sent, before=None, is_whole=True)
    assert match.parent == stored[6].id


TEXTS = st.sampled_from(["a", "b", "c"])
MESSAGES = st.lists(
    st.one_of(
        st.builds(user, TEXTS),
        st.builds(answer, TEXTS),
        st.builds(partial(answer, ""), TEXTS),
        st.builds(result, TEXTS),
    ),
    max_size=8,
)


@given(earlier=MESSAGES, sent=MESSAGES, repeated=st.integers(0, 8), is_whole=st.booleans())
def test_any_request_can_be_compared_with_any_session(
    earlier: list[dict[str, Any]], sent: list[dict[str, Any]], repeated: int, *, is_whole: bool
) -> None:
    stored = to_stored(earlier)
    request = [*earlier[repeated:], *sent] or [user("a")]
    match = match_session(stored, request, before=None, is_whole=is_whole)
    assert 0 <= match.overlap.known <= len(request)
    assert 0 <= match.overlap.begin <= len(stored)
    assert match.parent is None or match.parent in {message.id for message in stored[:-1]}
