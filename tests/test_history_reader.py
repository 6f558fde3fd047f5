"""Reading a session in chunks: their sizes, their limits, and where the read continues."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from groqchat.storage import history_reader
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.history_reader import Cursor, Entry, HistoryReader
from groqchat.storage.keys import Command
from groqchat.storage.messages import Message, Role, ScoredMember, encode_member, member_id

KEY = "chat:session:s"
START = 1_705_314_645_000_000
SECOND = 1_000_000


def message(number: int, content: str = "") -> Message:
    """Return a message whose time and content tell its number."""
    return Message(id=f"{START + number:013x}0000", role="user", content=content or f"m{number}")


def messages(*numbers: int) -> list[Message]:
    return [message(number) for number in numbers]


class Session:
    """A session in fakeredis; records the commands of each read."""

    def __init__(self, redis: FakeAsyncRedis) -> None:
        self.redis = redis
        self.batcher = CommandBatcher(redis, timeout_s=5)
        self.reads: list[list[Command]] = []

    async def transact(self, commands: Sequence[Command]) -> list[Any]:
        self.reads.append(list(commands))
        return await self.batcher.transact(commands)

    def reader(self, *, forward: bool = True) -> HistoryReader:
        return HistoryReader(self.transact, KEY, forward=forward)

    async def save(self, *saved: Message) -> None:
        await self.redis.zadd(KEY, {encode_member(each): each.score for each in saved})

    @property
    def ranges(self) -> list[Command]:
        """The commands that read messages, without the key."""
        return [(*read[2][:1], *read[2][2:]) for read in self.reads]


@pytest.fixture
async def session() -> Session:
    """An empty session."""
    return Session(FakeAsyncRedis())


def scored(message: Message) -> ScoredMember:
    return encode_member(message), message.score


def read_messages(entries: Sequence[Entry]) -> list[Message | None]:
    return [message for _, message in entries]


async def test_each_read_is_one_transaction_on_the_session(session: Session) -> None:
    await session.save(*messages(1, 2))
    reader = session.reader()
    await reader.read(None, limit=10)

    assert session.reads == [
        [
            ("ZCARD", KEY),
            ("ZRANGE", KEY, -1, -1, "WITHSCORES"),
            ("ZRANGE", KEY, 0, 10, "WITHSCORES"),
        ]
    ]
    last = message(2)
    assert reader.count == 2
    assert reader.last == [scored(last)]


async def test_an_empty_session_has_no_members(session: Session) -> None:
    reader = session.reader()
    assert await reader.read(None, limit=10) == []
    assert (reader.count, reader.last, reader.has_more, reader.next) == (0, [], False, ())


@pytest.mark.parametrize(
    ("forward", "cursor", "limit", "expected", "following"),
    [
        (True, None, 3, (1, 2, 3), (4,)),
        (True, None, 5, (1, 2, 3, 4, 5), (6,)),
        (True, None, 6, (1, 2, 3, 4, 5, 6), ()),
        (True, None, 7, (1, 2, 3, 4, 5, 6), ()),
        (False, None, 3, (6, 5, 4), (3,)),
        (False, None, 6, (6, 5, 4, 3, 2, 1), ()),
        (True, 2, 3, (3, 4, 5), (6,)),
        (True, 2, 4, (3, 4, 5, 6), ()),
        (True, 6, 4, (), ()),
        (False, 5, 3, (4, 3, 2), (1,)),
        (False, 5, 4, (4, 3, 2, 1), ()),
        (False, 1, 4, (), ()),
    ],
)
async def test_a_read_ends_at_its_limit_and_knows_the_next_member(  # noqa: PLR0913 - a table
    session: Session,
    cursor: int | None,
    limit: int,
    expected: Sequence[int],
    following: Sequence[int],
    *,
    forward: bool,
) -> None:
    await session.save(*messages(1, 2, 3, 4, 5, 6))
    # A cursor is the id of a message, or its member with the score.
    cursors: list[Cursor | None] = [None]
    if cursor is not None:
        cursors = [message(cursor).id, scored(message(cursor))]
    for position in cursors:
        reader = session.reader(forward=forward)
        entries = await reader.read(position, limit=limit)
        assert entries == [(scored(each), each) for each in messages(*expected)]
        assert reader.has_more is bool(following)
        assert list(reader.next) == [scored(each) for each in messages(*following)]


async def test_a_cursor_is_read_from_one_microsecond_before_its_message(session: Session) -> None:
    cursor = message(2)
    await session.save(*messages(1, 2, 3))
    for forward in (True, False):
        await session.reader(forward=forward).read(cursor.id, limit=2)
        await session.reader(forward=forward).read((encode_member(cursor), 1.5), limit=2)
    assert session.ranges == [
        ("ZRANGE", "1705314645.000001", "+inf", "BYSCORE", "LIMIT", 0, 11, "WITHSCORES"),
        ("ZRANGE", "1.5", "+inf", "BYSCORE", "LIMIT", 0, 11, "WITHSCORES"),
        ("ZRANGE", "1705314645.000003", "-inf", "BYSCORE", "REV", "LIMIT", 0, 11, "WITHSCORES"),
        ("ZRANGE", "1.5", "-inf", "BYSCORE", "REV", "LIMIT", 0, 11, "WITHSCORES"),
    ]


async def test_a_score_with_a_fraction_of_a_microsecond_is_found(session: Session) -> None:
    """Other programs write such scores; the id contains the rounded time."""
    members = {f'{{"role":"user","content":"{number}"}}': number for number in range(5)}
    scores = {member: 1000.0000004 + 0.0000002 * number for member, number in members.items()}
    await session.redis.zadd(KEY, scores)
    everything = await session.reader().read(None, limit=10)
    for forward in (True, False):
        reading = everything if forward else everything[::-1]
        for index, (member, _) in enumerate(reading):
            found = await session.reader(forward=forward).read(member_id(member), limit=10)
            assert found == reading[index + 1 :]


async def test_chunks_grow_while_messages_are_short(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_reader, "FIRST_CHUNK", 2)
    monkeypatch.setattr(history_reader, "MAX_CHUNK", 5)
    await session.save(*messages(*range(20)))
    reader = session.reader()
    assert read_messages(await reader.read(None, limit=12)) == messages(*range(12))
    # The counts contain eight members that may have the cursor's score.
    assert [command[2] for command in session.ranges[:1]] == [1]
    assert [command[-2] for command in session.ranges[1:]] == [5 + 8, 5 + 8, 1 + 8]


async def test_chunks_shrink_when_messages_are_long(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [message(number, "x" * 1000) for number in range(10)]
    size = len(encode_member(long[0]))
    monkeypatch.setattr(history_reader, "FIRST_CHUNK", 4)
    monkeypatch.setattr(history_reader, "CHUNK_BYTES", 2 * size)
    await session.save(*long)
    assert read_messages(await session.reader().read(None, limit=9)) == long[:9]
    assert [command[-2] for command in session.ranges[1:]] == [2 + 8, 2 + 8, 2 + 8]

    session.reads.clear()
    monkeypatch.setattr(history_reader, "CHUNK_BYTES", size // 2)
    assert read_messages(await session.reader().read(None, limit=6)) == long[:6]
    assert [command[-2] for command in session.ranges[1:]] == [1 + 8, 1 + 8, 1 + 8]


@pytest.mark.parametrize(("max_messages", "expected"), [(1, 2), (2, 2), (3, 4), (7, 7), (99, 7)])
async def test_a_read_ends_before_the_byte_limit_or_after_the_chunk_with_enough_bytes(
    session: Session, monkeypatch: pytest.MonkeyPatch, max_messages: int, expected: int
) -> None:
    limit_bytes = max_messages * len(encode_member(message(0)))
    monkeypatch.setattr(history_reader, "FIRST_CHUNK", 2)
    monkeypatch.setattr(history_reader, "MAX_CHUNK", 2)
    await session.save(*messages(*range(7)))

    reader = session.reader()
    entries = await reader.read(None, limit=100, enough_bytes=limit_bytes)
    assert read_messages(entries) == messages(*range(expected))

    monkeypatch.setattr(history_reader, "MAX_PAGE_BYTES", limit_bytes)
    reader = session.reader()
    entries = await reader.read(None, limit=100)
    count = min(max_messages, 7)
    assert read_messages(entries) == messages(*range(count))
    assert reader.has_more is (count < 7)
    following = [encode_member(each) for each in messages(*range(count, 7))]
    assert [member for member, _ in reader.next] == following[:1]


async def test_corrupt_members_do_not_count_as_messages(session: Session) -> None:
    corrupt = [b"not json", b'{"role":["user"],"content":""}']
    await session.redis.zadd(KEY, dict.fromkeys(corrupt, START / SECOND))
    await session.save(*messages(1, 2, 3))
    reader = session.reader()
    entries = await reader.read(None, limit=2)
    assert read_messages(entries) == [None, None, *messages(1, 2)]
    assert reader.has_more is True


async def test_the_number_of_members_of_one_read_is_bounded(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_reader, "FIRST_CHUNK", 2)
    monkeypatch.setattr(history_reader, "MAX_CHUNK", 2)
    monkeypatch.setattr(history_reader, "MAX_MEMBERS", 4)
    corrupt = [json.dumps({"number": number}).encode() for number in range(9)]
    await session.redis.zadd(KEY, dict.fromkeys(corrupt, START / SECOND))
    reader = session.reader()
    assert read_messages(await reader.read(None, limit=100)) == [None] * 4
    assert (reader.has_more, len(reader.next), reader.count) == (True, 1, 9)


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({}, {}),
        ({"model": "openai/gpt-oss-20b", "finish_reason": "stop"}, {"model": None}),
        ({"model": "m", "tokens": 0}, {"model": "m", "tokens": 0}),
        ({"finish_reason": "length"}, {"finish_reason": "length"}),
        ({"status": "incomplete"}, {"status": "incomplete"}),
        ({"extra": {"tool_calls": []}}, {"extra": {"tool_calls": []}}),
        ({"extra": {}}, {"extra": {}}),
    ],
)
async def test_an_answer_is_stored_as_compact_json_and_read_unchanged(
    session: Session, fields: dict[str, Any], stored: dict[str, Any]
) -> None:
    answer = Message(
        **{"id": message(1).id, "role": "assistant", "content": "é", "finish_reason": "stop"}
        | fields
    )
    await session.save(answer)
    assert read_messages(await session.reader().read(None, limit=1)) == [answer]

    expected = {"id": answer.id, "role": "assistant", "content": "é", "model": None, **stored}
    if answer.model == "openai/gpt-oss-20b":
        del expected["model"]
    text = json.dumps(expected, separators=(",", ":"), ensure_ascii=False)
    assert await session.redis.zrange(KEY, 0, -1) == [text.encode()]


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ({"role": "user", "content": "c"}, {"model": None}),
        ({"role": "assistant", "content": "c"}, {"model": None, "finish_reason": None}),
        (
            {
                "role": "assistant",
                "content": "c",
                "model": "m",
                "tokens": 3,
                "finish_reason": "length",
                "status": "incomplete",
                "extra": {"name": "n"},
            },
            {
                "model": "m",
                "tokens": 3,
                "finish_reason": "length",
                "status": "incomplete",
                "extra": {"name": "n"},
            },
        ),
        (
            {
                "role": "user",
                "content": "c",
                "model": 1,
                "tokens": "3",
                "finish_reason": [],
                "status": 2,
                "extra": [1],
            },
            {},
        ),
        ({"role": "user", "content": "c", "tokens": True}, {}),
        ({"role": "tool", "content": "c", "id": "not an id"}, {}),
        ({"role": "system", "content": "c", "id": 5}, {}),
    ],
)
async def test_members_of_other_programs_are_read_without_fields_of_wrong_types(
    session: Session, member: dict[str, Any], expected: dict[str, Any]
) -> None:
    text = json.dumps(member).encode()
    await session.redis.zadd(KEY, {text: 1000.5})
    assert read_messages(await session.reader().read(None, limit=1)) == [
        Message(
            id=member_id((text, 1000.5)), role=member["role"], content=member["content"], **expected
        )
    ]


@pytest.mark.parametrize("role", ["user", "assistant"])
async def test_only_an_answer_has_a_default_finish_reason(session: Session, role: Role) -> None:
    stored = Message(id=message(1).id, role=role, content="c", finish_reason="stop")
    await session.save(stored)
    [found] = read_messages(await session.reader().read(None, limit=1))
    assert found is not None
    assert found.finish_reason == ("stop" if role == "assistant" else None)


async def test_values_beyond_the_limits_of_orjson_are_stored(session: Session) -> None:
    stored = Message(id=message(1).id, role="user", content="half \ud83d", extra={"n": 2**70})
    await session.save(stored)
    assert await session.redis.zrange(KEY, 0, -1) == [
        b'{"id":"%b","role":"user","content":"half \\ud83d","model":null,"extra":{"n":%d}}'
        % (stored.id.encode(), 2**70)
    ]
    # A lone surrogate, which is half a character, is read as a question mark.
    assert read_messages(await session.reader().read(None, limit=1)) == [
        Message(id=stored.id, role="user", content="half ?", extra={"n": float(2**70)})
    ]


def test_the_timestamp_of_a_message_is_the_time_in_its_id() -> None:
    assert message(7).timestamp == "2024-01-15T10:30:45.000007+00:00"
    assert message(7).score_text == "1705314645000007e-6"
    assert message(7).score == 1705314645.000007
