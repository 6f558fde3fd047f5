"""Transcripts whose last messages were edited after a failure, and are repeated."""

import pytest
from aiohttp import ClientSession

from tests.support.groq import MockGroq
from tests.support.streams import history
from tests.test_openai_idempotency import send, succeeds
from tests.test_openai_rejections import api, contents, users

__all__ = ["api"]


async def fail(api: ClientSession, *messages: dict[str, str]) -> None:
    assert (await send(api, session=True, messages=[*messages], headers={}))[0] == 503


@pytest.fixture
async def exchange(api: ClientSession) -> list[dict[str, str]]:
    """The messages of a session with one answer."""
    assert await succeeds(api, session=True, messages=users("P"), headers={})
    return [*users("P"), {"role": "assistant", "content": (await history(api))[1]["content"]}]


async def test_an_edited_message_that_is_repeated_is_stored_once(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]]
) -> None:
    groq.options.fail = "503"
    await fail(api, *exchange, *users("Q"))
    for _ in range(3):
        await fail(api, *exchange, *users("edited"))
    groq.options.fail = None
    assert await succeeds(api, session=True, messages=[*exchange, *users("edited")], headers={})
    assert await contents(api) == ["P", "answer", "Q", "edited", "answer"]


async def test_a_message_before_an_edited_one_is_stored_once(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]]
) -> None:
    groq.options.fail = "503"
    await fail(api, *exchange, *users("Q", "R"))
    groq.options.fail = None
    transcript = [*exchange, *users("Q", "edited")]
    assert await succeeds(api, session=True, messages=transcript, headers={})
    assert await contents(api) == ["P", "answer", "Q", "R", "edited", "answer"]


async def test_a_rejected_edit_retains_an_equal_message_of_another_request(
    api: ClientSession, groq: MockGroq, exchange: list[dict[str, str]]
) -> None:
    groq.options.fail = "503"
    await fail(api, *exchange, *users("P"))
    groq.options.fail = "400"
    await send(api, session=True, messages=[*exchange, *users("edited")], headers={})
    assert await contents(api) == ["P", "answer", "P"]
