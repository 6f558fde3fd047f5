"""The prompt of a turn: which earlier messages are read, and which the model receives."""

from typing import Any

import pytest

from groqchat.models import ChatRequest
from groqchat.services.groq.completions import Prompt
from groqchat.services.turns.context import build_prompt, context_limit, fit_to_budget
from groqchat.settings import Settings
from groqchat.storage.messages import Message, PromptMessage, Role


@pytest.fixture
def settings() -> Settings:
    """Settings with a small context."""
    return Settings(
        chat_context_messages=7, chat_context_tokens=100, groq_default_model="default/model"
    )


def request(**fields: Any) -> ChatRequest:
    return ChatRequest(message="Hello", **fields)


def prompt_message(content: str, role: Role = "user") -> PromptMessage:
    return {"role": role, "content": content}


def user_message(model: str | None) -> Message:
    return Message(id="660dffe0b39799a87", role="user", content="Hello", model=model)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"session_id": "s"}, 7),
        ({"session_id": "s", "context": 3}, 3),
        ({"session_id": "s", "context": 0}, 0),
        # A new session has no earlier messages.
        ({}, 0),
        ({"context": 3}, 0),
    ],
)
def test_the_number_of_earlier_messages_is_the_requests_or_the_settings(
    settings: Settings, fields: dict[str, Any], limit: int
) -> None:
    assert context_limit(request(**fields), settings) == limit


def test_a_plain_request_has_a_prompt_without_options(settings: Settings) -> None:
    prompt = build_prompt(request(), user_message("a/model"), [], settings=settings)
    assert prompt == Prompt(
        model="a/model", messages=[prompt_message("Hello")], system_prompt=None, options={}
    )


def test_the_prompt_contains_the_context_and_all_options_of_the_request(
    settings: Settings,
) -> None:
    earlier = [prompt_message("Hi"), prompt_message("Hi!", "assistant")]
    prompt = build_prompt(
        request(system_prompt="Be brief.", temperature=0, top_p=0.5, max_completion_tokens=9),
        user_message(None),
        earlier,
        settings=settings,
    )
    assert prompt == Prompt(
        model="default/model",
        messages=[*earlier, prompt_message("Hello")],
        system_prompt="Be brief.",
        options={"temperature": 0, "top_p": 0.5, "max_completion_tokens": 9},
    )


def test_the_prompt_contains_only_the_messages_within_the_budget(settings: Settings) -> None:
    earlier = [prompt_message("a" * 400), prompt_message("b" * 384)]
    prompt = build_prompt(request(), user_message("a/model"), earlier, settings=settings)
    assert prompt.messages == [earlier[1], prompt_message("Hello")]


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("", None),
        ("abc", 4),
        ("abcd", 5),
        ("abcdefg", 5),
        ("abcdefgh", 6),
        # Bytes count, not characters: each of these has two bytes.
        ("\u00e9" * 4, 6),
        ("\u00e9" * 100, 54),
    ],
)
def test_four_bytes_count_as_a_token_and_each_message_as_four_more(
    content: str, tokens: int | None
) -> None:
    message = prompt_message(content)
    for budget in range(60):
        expected = [message] if tokens is not None and budget >= tokens else []
        assert fit_to_budget([message], budget) == expected


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_every_role_but_tool_is_part_of_the_context(role: Role) -> None:
    message = prompt_message("Hi", role)
    expected = [] if role == "tool" else [message]
    assert fit_to_budget([message], 1000) == expected
    # The estimate and the quick check for short contexts agree.
    assert fit_to_budget([prompt_message("x" * 2000), message], 10) == expected


def test_a_message_that_does_not_fit_ends_the_context() -> None:
    short, long, last = prompt_message("a"), prompt_message("b" * 400), prompt_message("c")
    assert fit_to_budget([short, long, last], 20) == [last]


def test_messages_without_text_and_tool_results_use_no_budget() -> None:
    first, last = prompt_message("a" * 40), prompt_message("b" * 40, "assistant")
    earlier = [first, prompt_message(""), prompt_message("x" * 999, "tool"), last]
    assert fit_to_budget(earlier, 28) == [first, last]
    assert fit_to_budget(earlier, 27) == [last]


def test_a_context_below_the_budget_is_not_copied() -> None:
    earlier = [prompt_message("a" * 10), prompt_message("b" * 10)]
    # Two messages of 10 characters are at most 28 tokens.
    assert fit_to_budget(earlier, 28) is earlier
    assert fit_to_budget(earlier, 27) == earlier
