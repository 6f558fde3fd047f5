"""What of a conversation comes along with a save, and what of it fits the budget."""

from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from groqchat.services.redis_chat_service import FIRST_CONTEXT, RedisChatService
from groqchat.services.turns.context import fit_to_budget
from groqchat.storage.messages import PromptMessage, Role, decode_context
from tests.test_store import message


def conversation(*texts: str, role: Role = "user") -> list[PromptMessage]:
    return [{"role": role, "content": text} for text in texts]


async def spoken(store: RedisChatService, count: int) -> list[PromptMessage]:
    """Save messages and return what was said."""
    messages = [message(f"message {number}") for number in range(count)]
    await store.save_message("s", *messages)
    return conversation(*(each.content for each in messages))


async def test_a_save_that_is_repeated_does_not_meet_itself(store: RedisChatService) -> None:
    await store.save_message("s", message("before"))
    question = message("Hello")
    for _ in range(2):
        earlier = await store.save_message("s", question, context=10)
        assert earlier == conversation("before")


@pytest.mark.parametrize("context", [1, FIRST_CONTEXT, FIRST_CONTEXT + 1, 120, 200])
async def test_as_many_earlier_messages_come_as_are_asked_for(
    store: RedisChatService, context: int
) -> None:
    everything = await spoken(store, 150)
    assert await store.save_message("s", message("new"), context=context) == everything[-context:]


async def test_a_long_context_is_read_no_further_than_its_budget(store: RedisChatService) -> None:
    everything = await spoken(store, 1000)
    earlier = await store.save_message("s", message("new"), context=1000, context_bytes=700)
    assert FIRST_CONTEXT < len(earlier) < 200
    assert earlier == everything[-len(earlier) :]
    earlier = await store.save_message("t", message("new"), context=1000, context_bytes=1)
    assert earlier == []
    earlier = await store.save_message("s", message("new"), context=1000, context_bytes=1)
    assert len(earlier) == FIRST_CONTEXT


async def test_a_long_context_goes_on_into_what_others_wrote(
    store: RedisChatService, any_redis: Redis
) -> None:
    members = {f'{{"role":"user","content":"{number}"}}': number / 100 for number in range(120)}
    await any_redis.zadd("chat:session:s", members)
    earlier = await store.save_message("s", message("new"), context=110)
    assert earlier == conversation(*(str(number) for number in range(10, 120)))


def test_halves_of_nonsense_do_not_make_a_message() -> None:
    double = b'{"role":"user","content":"a"},{"role":"system","content":"b"}'
    assert decode_context([double], session_id="s") == []
    halves = [b'{"role":"user"', b'"content":"a"}']
    assert decode_context(halves, session_id="s") == []


def test_half_a_character_is_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
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
def test_what_is_no_message_is_left_out_of_the_context(
    member: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    good = b'{"role":"user","content":"a"}'
    assert decode_context([good, member, good], session_id="s") == conversation("a", "a")
    assert "skipped 1 corrupt member(s) of session s" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [(0, []), (103, []), (104, ["b"]), (108, ["b"]), (109, ["a", "b"]), (10_000, ["a", "b"])],
)
def test_the_latest_messages_fill_the_budget(tokens: int, kept: Sequence[str]) -> None:
    # 400 bytes count 100 tokens, 4 bytes 1, and each message 4 more.
    messages = conversation("a" * 4, "b" * 400)
    assert [said["content"][0] for said in fit_to_budget(messages, tokens)] == kept


def test_messages_that_a_model_does_not_take_as_they_are_do_not_count() -> None:
    user, empty = conversation("Hello", "")
    tool = conversation("result", role="tool")
    assert fit_to_budget([*tool, user, empty], 100) == [user]
