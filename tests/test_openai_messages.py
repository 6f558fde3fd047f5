"""Messages in Groq's format: what is known of them, what fits, what is left out."""

from typing import Any

import pytest

from groqchat.services.openai.messages import drop_unpaired_tool_calls, find_overlap, trim_to_budget
from tests.support.openai_messages import answer, result, user


@pytest.mark.parametrize(
    ("earlier", "said", "known"),
    [
        ([], [user("a")], (0, 0)),
        ([user("a"), answer("b")], [user("c")], (0, 2)),
        ([user("a"), answer("b")], [user("a")], (0, 2)),
        ([user("a"), answer("b")], [user("a"), answer("b"), user("c")], (2, 0)),
        ([user("x"), answer("y"), user("a")], [user("a")], (1, 2)),
        # The session knows less than the client: its life began, or is read, further on.
        (
            [user("c"), answer("d")],
            [user("a"), answer("b"), user("c"), answer("d"), user("e")],
            (4, 0),
        ),
        # What clients make of an answer that they send back.
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
        # What the client has otherwise: asked again, stopped, edited, without the calls of tools.
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
        # A chance match at the end counts for less.
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
        # What is new is never taken for known, even where something in it is said again.
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
        # How the answer is to begin is no conversation.
        ([user("x"), answer("y"), user("yes"), answer("z")], [user("yes"), answer("{")], (0, 4)),
        ([user("yes"), answer("z")], [{**user("yes"), "name": "Al"}], (0, 2)),
        ([{**user("yes"), "name": "Bob"}], [{**user("yes"), "name": "Al"}], (0, 1)),
    ],
)
def test_what_is_known_is_told_by_what_it_means(
    earlier: list[dict[str, Any]], said: list[dict[str, Any]], known: tuple[int, int]
) -> None:
    assert find_overlap(earlier, said) == known


def test_many_equal_messages_are_compared_at_once() -> None:
    earlier = [answer("first"), *[user("")] * 999]
    assert find_overlap(earlier, [user("")] * 100_000) == (999, 1)


def test_a_context_begins_with_a_question_and_ends_where_the_budget_does() -> None:
    earlier = [user("a" * 400), answer("b"), user("c"), answer("d")]

    def fitting(messages: int, tokens: int, *, needed: bool = False) -> list[dict[str, Any]]:
        return trim_to_budget(earlier, messages=messages, tokens=tokens, needs_last_exchange=needed)

    assert fitting(10, 1000) == earlier
    assert fitting(10, 100) == fitting(3, 1000) == earlier[2:]
    assert fitting(1, 1000) == fitting(0, 1000) == fitting(10, 0) == []
    assert fitting(0, 0, needed=True) == earlier[2:]


def test_the_answer_of_a_long_turn_with_tools_comes_without_the_turn() -> None:
    rounds = [message for number in range(9) for message in (answer("", f"{number}"), result("1"))]
    earlier = [user("a"), *rounds, answer("b")]
    for messages, begin in ((20, 0), (19, 19), (1, 19), (0, 20)):
        fitting = trim_to_budget(earlier, messages=messages, tokens=1000, needs_last_exchange=False)
        assert fitting == earlier[begin:]


def test_results_of_tools_come_with_their_question_however_long_the_turn() -> None:
    calls = [message for number in range(15) for message in (answer("", f"{number}"), result("1"))]
    earlier = [user("a"), *calls, answer("", "15")]
    assert trim_to_budget(earlier, messages=20, tokens=10, needs_last_exchange=True) == earlier


def test_an_image_counts_for_what_a_model_makes_of_it() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    earlier = [{"role": "user", "content": [{"type": "text", "text": "?"}, image]}, answer("b")]
    assert trim_to_budget(earlier, messages=10, tokens=2_100, needs_last_exchange=False) == earlier
    assert trim_to_budget(earlier, messages=10, tokens=2_000, needs_last_exchange=False) == []


@pytest.mark.parametrize(
    ("earlier", "said", "left"),
    [
        ([user("a"), answer("", "1"), result("1")], [user("b")], [0, 1, 2]),
        ([user("a"), answer("", "1")], [result("1")], [0, 1]),
        ([user("a"), answer("", "1")], [user("b")], [0]),
        ([user("a"), answer("", "1", "2"), result("1")], [user("b")], [0]),
        ([user("a"), answer("", "1", "2"), result("1")], [result("2")], [0, 1, 2]),
        ([result("1"), user("a")], [user("b")], [1]),
    ],
)
def test_calls_without_results_and_results_without_calls_are_left_out(
    earlier: list[dict[str, Any]], said: list[dict[str, Any]], left: list[int]
) -> None:
    assert drop_unpaired_tool_calls(earlier, said) == [earlier[at] for at in left]


def test_what_was_said_beside_a_call_is_left_in() -> None:
    earlier = [user("a"), answer("I look it up.", "1")]
    assert drop_unpaired_tool_calls(earlier, [user("b")]) == [user("a"), answer("I look it up.")]
