"""Messages in OpenAI's format: overlap with the session, token budget, tool calls."""

from typing import Any

import pytest

from groqchat.services.openai.messages import drop_unpaired_tool_calls, find_overlap, trim_to_budget
from tests.support.openai_messages import answer, result, user


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
    assert find_overlap(earlier, sent, is_whole=True) == overlap


def test_a_repeated_exchange_does_not_hide_a_new_message() -> None:
    exchanges = [user("a"), answer("b"), user("c"), answer("d"), user("a"), answer("b")]
    overlap = find_overlap(exchanges, [user("a"), answer("b"), user("c")], is_whole=True)
    assert overlap == (2, 4)


def test_a_common_first_message_of_a_part_of_a_session_may_be_a_coincidence() -> None:
    earlier = [user("a"), answer("b"), user("c"), answer("d")]
    transcript = [user("a"), answer("x"), user("y")]
    assert find_overlap(earlier, transcript, is_whole=True) == (1, 0)
    assert find_overlap(earlier, transcript, is_whole=False) == (0, 4)


@pytest.mark.parametrize(
    ("repeated", "known"),
    [('{"a": 123456789012345678901}', 2), ('{"a":123456789012345678902}', 0)],
)
def test_arguments_are_compared_with_exact_integers(repeated: str, known: int) -> None:
    stored = answer("", "1", arguments='{"a":123456789012345678901}')
    request = [user("a"), answer("", "1", arguments=repeated)]
    overlap = find_overlap([user("a"), stored], request, is_whole=True)
    assert overlap.known == known


def test_arguments_with_a_lone_surrogate_are_compared_as_json() -> None:
    stored, repeated = (
        answer("", "1", arguments=text) for text in ('{"a":"\\ud800"}', '{"a": "\\uD800"}')
    )
    overlap = find_overlap([user("a"), stored], [user("a"), repeated], is_whole=True)
    assert overlap.known == 2


def test_long_arguments_are_compared_as_text() -> None:
    def overlap(size: int) -> tuple[int, int]:
        stored = answer("", "1", arguments='{"a": "%s"}' % ("x" * size))
        repeated = answer("", "1", arguments='{"a":"%s"}' % ("x" * size))
        return find_overlap([user("a"), stored], [user("a"), repeated], is_whole=True)

    assert (overlap(4000), overlap(5000)) == ((2, 0), (0, 2))


def test_the_end_of_a_long_session_is_the_end_of_the_messages_that_repeat_it() -> None:
    transcript = [user("ping"), answer("pong")] * 600
    earlier = transcript[-1000:]
    assert find_overlap(earlier, [*transcript, user("a")], is_whole=False) == (1200, 0)


def test_many_equal_messages_are_compared_fast() -> None:
    earlier = [answer("first"), *[user("")] * 999]
    assert find_overlap(earlier, [user("")] * 100_000, is_whole=True) == (999, 1)


def test_the_context_starts_with_a_user_message_and_fits_the_budget() -> None:
    earlier = [user("a" * 400), answer("b"), user("c"), answer("d")]

    def trimmed(messages: int, tokens: int, *, needed: bool = False) -> list[dict[str, Any]]:
        return trim_to_budget(earlier, messages=messages, tokens=tokens, needs_last_exchange=needed)

    assert trimmed(10, 1000) == earlier
    assert trimmed(10, 100) == trimmed(3, 1000) == earlier[2:]
    assert trimmed(1, 1000) == trimmed(0, 1000) == trimmed(10, 0) == []
    assert trimmed(0, 0, needed=True) == earlier[2:]


def test_if_a_long_exchange_with_tools_does_not_fit_only_its_answer_is_returned() -> None:
    rounds = [message for number in range(9) for message in (answer("", f"{number}"), result("1"))]
    earlier = [user("a"), *rounds, answer("b")]
    for messages, begin in ((20, 0), (19, 19), (1, 19), (0, 20)):
        trimmed = trim_to_budget(earlier, messages=messages, tokens=1000, needs_last_exchange=False)
        assert trimmed == earlier[begin:]


def test_before_tool_results_the_whole_last_exchange_is_returned() -> None:
    calls = [message for number in range(15) for message in (answer("", f"{number}"), result("1"))]
    earlier = [user("a"), *calls, answer("", "15")]
    assert trim_to_budget(earlier, messages=20, tokens=10, needs_last_exchange=True) == earlier


def test_an_image_counts_as_a_fixed_number_of_tokens() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    earlier = [{"role": "user", "content": [{"type": "text", "text": "?"}, image]}, answer("b")]
    assert trim_to_budget(earlier, messages=10, tokens=2_100, needs_last_exchange=False) == earlier
    assert trim_to_budget(earlier, messages=10, tokens=2_000, needs_last_exchange=False) == []


@pytest.mark.parametrize(
    ("earlier", "sent", "remaining"),
    [
        ([user("a"), answer("", "1"), result("1")], [user("b")], [0, 1, 2]),
        ([user("a"), answer("", "1")], [result("1")], [0, 1]),
        ([user("a"), answer("", "1")], [user("b")], [0]),
        ([user("a"), answer("", "1", "2"), result("1")], [user("b")], [0]),
        ([user("a"), answer("", "1", "2"), result("1")], [result("2")], [0, 1, 2]),
        ([result("1"), user("a")], [user("b")], [1]),
    ],
)
def test_calls_without_results_and_results_without_calls_are_dropped(
    earlier: list[dict[str, Any]], sent: list[dict[str, Any]], remaining: list[int]
) -> None:
    expected = [earlier[index] for index in remaining]
    assert drop_unpaired_tool_calls(earlier, sent) == expected


def test_the_text_of_a_message_with_a_dropped_call_remains() -> None:
    earlier = [user("a"), answer("I look it up.", "1")]
    assert drop_unpaired_tool_calls(earlier, [user("b")]) == [user("a"), answer("I look it up.")]
