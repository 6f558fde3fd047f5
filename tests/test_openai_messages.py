"""Messages in OpenAI's format: token budget, tool calls."""

from typing import Any

import pytest

from groqchat.services.openai.messages import (
    drop_unpaired_tool_calls,
    messages_of_calls,
    to_message,
    trim_to_budget,
    with_calls_last,
)
from tests.support.openai_messages import answer, result, user


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


def test_all_results_of_the_calls_precede_the_result_that_starts_a_request() -> None:
    calls = {
        **answer("", "1"),
        "tool_calls": [*answer("", "1")["tool_calls"], *answer("", "2")["tool_calls"]],
    }
    earlier = [user("a"), calls, result("1"), user("other")]
    moved = with_calls_last(earlier, [result("2")])
    assert moved == [user("a"), user("other"), calls, result("1")]
    assert drop_unpaired_tool_calls(moved, [result("2")]) == moved


def test_a_result_belongs_to_the_user_message_the_calls_and_their_other_results() -> None:
    first, second = answer("", "1"), answer("", "2")
    calls = {**first, "tool_calls": [*first["tool_calls"], *second["tool_calls"]]}
    earlier = [user("a"), user("b"), calls, result("1"), user("other")]
    stored = [
        to_message(each, None, message_id=f"{at:013x}8000") for at, each in enumerate(earlier)
    ]
    assert messages_of_calls(stored, [result("2")]) == stored[1:4]
    assert messages_of_calls(stored, [result("3")]) == []
    assert messages_of_calls(stored, [user("c")]) == []


def test_the_calls_remain_if_their_user_message_is_older_than_what_was_read() -> None:
    earlier = [result("1"), answer("", "2"), result("2"), answer("", "3")]
    trimmed = trim_to_budget(earlier, messages=50, tokens=10_000, needs_last_exchange=True)
    assert trimmed == earlier[-1:]
