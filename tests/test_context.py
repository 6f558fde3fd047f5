"""The context: the earlier messages that a save returns, and the token budget."""

from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from groqchat.services.history_store import HistoryStore
from groqchat.services.turns.context import fit_to_budget
from groqchat.storage.messages import FIRST_CONTEXT, PromptMessage, Role, decode_context
from tests.support.store import new_message


def conversation(*texts: str, role: Role = "user") -> list[PromptMessage]:
    return [{"role": role, "content": text} for text in texts]


async def save_conversation(store: HistoryStore, count: int) -> list[PromptMessage]:
    """Save messages and return them as prompt messages."""
    messages = [new_message(f"message {number}") for number in range(count)]
    await store.save_messages("s", *messages)
    return conversation(*(each.content for each in messages))


async def test_a_repeated_save_does_not_return_its_own_message(store: HistoryStore) -> None:
    await store.save_messages("s", new_message("before"))
    user_message = new_message("Hello")
    for _ in range(2):
        earlier = await store.save_messages("s", user_message, context=10)
        assert earlier == conversation("before")


@pytest.mark.parametrize("context", [1, FIRST_CONTEXT, FIRST_CONTEXT + 1, 120, 200])
async def test_a_save_returns_the_requested_number_of_earlier_messages(
    store: HistoryStore, context: int
) -> None:
    saved = await save_conversation(store, 150)
    assert await store.save_messages("s", new_message("new"), context=context) == saved[-context:]


async def test_the_byte_limit_ends_the_read_of_a_long_context(store: HistoryStore) -> None:
    saved = await save_conversation(store, 1000)
    earlier = await store.save_messages("s", new_message("new"), context=1000, context_bytes=700)
    assert FIRST_CONTEXT < len(earlier) < 200
    assert earlier == saved[-len(earlier) :]
    earlier = await store.save_messages("t", new_message("new"), context=1000, context_bytes=1)
    assert earlier == []
    earlier = await store.save_messages("s", new_message("new"), context=1000, context_bytes=1)
    assert len(earlier) == FIRST_CONTEXT


async def test_a_long_context_includes_members_of_other_programs(
    store: HistoryStore, any_redis: Redis
) -> None:
    members = {f'{{"role":"user","content":"{number}"}}': number / 100 for number in range(120)}
    await any_redis.zadd("chat:session:s", members)
    earlier = await store.save_messages("s", new_message("new"), context=110)
    assert earlier == conversation(*(str(number) for number in range(10, 120)))


def test_corrupt_members_are_not_joined_into_a_message() -> None:
    two_in_one = b'{"role":"user","content":"a"},{"role":"system","content":"b"}'
    assert decode_context([two_in_one], session_id="s") == []
    halves = [b'{"role":"user"', b'"content":"a"}']
    assert decode_context(halves, session_id="s") == []


def test_a_lone_surrogate_is_replaced_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    members = [b'{"role":"user","content":"half \\ud83d"}']
    assert decode_context(members, session_id="s") == conversation("half ?")
    assert caplog.text == ""


@pytest.mark.parametrize(
    "member",
    [
        b"[]",
        b'{"role":["user"],"content":"a"}',
        b'{"role":"user","content":["a"]}',
        b'{"role":"user"}',
        b'{"content":"a"}',
        b'{"role":"root","content":"a"}',
        b'{"role":"user","content":"\xff"}',
        b'{"role":"user","content":"a","extra":%b%b}' % (b"[" * 100_000, b"]" * 100_000),
        b"null",
        b"{",
    ],
    ids=lambda member: member[:40].decode(errors="replace"),
)
def test_a_corrupt_member_is_not_part_of_the_context(
    member: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    good = b'{"role":"user","content":"a"}'
    assert decode_context([good, member, good], session_id="s") == conversation("a", "a")
    assert "skipped 1 corrupt member(s) of session s" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, []), (103, []), (104, ["b"]), (108, ["b"]), (109, ["a", "b"]), (10_000, ["a", "b"])],
)
def test_the_latest_messages_fill_the_budget(tokens: int, expected: Sequence[str]) -> None:
    # 400 bytes count as 100 tokens, 4 bytes as 1 token, and each message as 4 more tokens.
    messages = conversation("a" * 4, "b" * 400)
    fitting = fit_to_budget(messages, tokens)
    assert [fitted["content"][0] for fitted in fitting] == expected


def test_tool_results_and_empty_messages_are_not_part_of_the_prompt() -> None:
    user, empty = conversation("Hello", "")
    tool = conversation("result", role="tool")
    assert fit_to_budget([*tool, user, empty], 100) == [user]
