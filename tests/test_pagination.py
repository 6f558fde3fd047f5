"""Keyset pagination: where a page starts, how many reads it needs, and pages of sessions."""

import time
from collections.abc import Callable, Sequence

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis

from groqchat.errors import SessionNotFound
from groqchat.storage import pagination, session_index
from groqchat.storage.messages import ScoredMember, member_id
from groqchat.storage.pagination import (
    count_before,
    index_after_member,
    index_after_message,
    read_after,
)
from groqchat.storage.session_index import SessionIndex, SessionPage

SECOND = 1_000_000


def native(micros: int, digits: str = "0000") -> ScoredMember:
    """Return a member of this service."""
    member = f'{{"id":"{micros:013x}{digits}","role":"user","content":""}}'
    return member.encode(), micros / SECOND


def foreign(content: str, score: float) -> ScoredMember:
    """Return a member of another program, which contains no id."""
    return f'{{"role":"user","content":"{content}"}}'.encode(), score


class Source:
    """A list whose reads are recorded."""

    def __init__(self, items: Sequence[int]) -> None:
        self.items = items
        self.counts: list[int] = []

    async def fetch(self, count: int) -> Sequence[int]:
        self.counts.append(count)
        return self.items[:count]


def start_at(index: int) -> Callable[[Sequence[int], bool], int]:
    """Return a start function for a cursor after which the item at `index` follows."""
    return lambda items, _is_end: min(index, len(items))


@pytest.mark.parametrize(
    ("length", "index", "want", "expected", "counts"),
    [
        # The cursor is the only member with its score.
        (100, 1, 3, [1, 2, 3], [3 + 8]),
        # Eight members with the cursor's score are expected, and a ninth needs another read.
        (100, 8, 3, [8, 9, 10], [3 + 8]),
        (100, 9, 3, [9, 10, 11], [3 + 8, 3 + 64]),
        (1000, 64, 3, [64, 65, 66], [3 + 8, 3 + 64]),
        (1000, 65, 3, [65, 66, 67], [3 + 8, 3 + 64, 3 + 512]),
        # The end of the set.
        (5, 1, 3, [1, 2, 3], [3 + 8]),
        (5, 4, 3, [4], [3 + 8]),
        (5, 5, 3, [], [3 + 8]),
        (10, 9, 3, [9], [3 + 8]),
        (11, 9, 3, [9, 10], [3 + 8, 3 + 64]),
        (0, 0, 3, [], [3 + 8]),
    ],
)
async def test_a_read_is_repeated_while_too_few_members_follow_the_cursor(
    length: int, index: int, want: int, expected: list[int], counts: list[int]
) -> None:
    source = Source(range(length))
    assert list(await read_after(source.fetch, start_at(index), want=want)) == expected
    assert source.counts == counts


async def test_a_read_ends_at_the_limit_of_equal_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagination, "MAX_TIES", 64)
    source = Source(range(10_000))
    ends: list[bool] = []

    def start(items: Sequence[int], is_end: bool) -> int:  # noqa: FBT001 - as read_after calls it
        ends.append(is_end)
        return len(items) - 1

    assert list(await read_after(source.fetch, start, want=2)) == [65]
    assert source.counts == [10, 66]
    assert ends == [False, True]


@pytest.mark.parametrize(("length", "is_end"), [(10, True), (11, False), (12, False)])
async def test_the_start_function_is_told_whether_further_items_exist(
    length: int, *, is_end: bool
) -> None:
    ends: list[bool] = []

    def start(_items: Sequence[int], is_end: bool) -> int:  # noqa: FBT001 - as read_after calls it
        ends.append(is_end)
        return 1

    source = Source(range(length))
    assert list(await read_after(source.fetch, start, want=3)) == [1, 2, 3]
    assert ends == [is_end]


ASCENDING = [(b"b", 1.0), (b"a", 2.0), (b"b", 2.0), (b"c", 2.0), (b"a", 3.0)]


@pytest.mark.parametrize(
    ("cursor", "forward", "backward"),
    [
        ((b"a", 0.0), 0, 5),
        ((b"b", 1.0), 1, 5),
        ((b"a", 2.0), 2, 4),
        ((b"b", 2.0), 3, 3),
        ((b"bb", 2.0), 3, 2),
        ((b"c", 2.0), 4, 2),
        ((b"a", 3.0), 5, 1),
        ((b"z", 3.0), 5, 0),
    ],
)
def test_members_follow_a_member_by_score_and_then_by_bytes(
    cursor: ScoredMember, forward: int, backward: int
) -> None:
    is_end = True
    descending = ASCENDING[::-1]
    assert index_after_member(cursor, ASCENDING, is_end, forward=True) == forward
    assert index_after_member(cursor, descending, is_end, forward=False) == backward


def test_members_follow_the_message_itself_whatever_its_id() -> None:
    # Redis orders equal scores by bytes, which is not the order of derived ids.
    members = [foreign(content, 1.7e9) for content in "abcdef"]
    ids = [member_id(member) for member in members]
    assert ids != sorted(ids)

    for is_end in (True, False):
        for index, message_id in enumerate(ids):
            found = index_after_message(message_id, members, is_end, forward=True)
            assert found == index + 1
            found = index_after_message(message_id, members[::-1], is_end, forward=False)
            assert found == len(members) - index


@pytest.mark.parametrize("is_end", [True, False])
def test_members_follow_the_former_position_of_a_deleted_message(*, is_end: bool) -> None:
    members = [native(100), native(200, "0001"), native(200, "0003"), native(300)]
    deleted = f"{200:013x}0002"
    assert index_after_message(deleted, members, is_end, forward=True) == 2
    assert index_after_message(deleted, members[::-1], is_end, forward=False) == 2
    first, last = f"{1:013x}0000", f"{900:013x}0000"
    assert index_after_message(first, members, is_end, forward=True) == 0
    assert index_after_message(last, members[::-1], is_end, forward=False) == 0


def test_a_message_may_be_among_the_members_that_are_not_read_yet() -> None:
    members = [native(200, "0001"), native(200, "0003")]
    missing = f"{200:013x}0002"
    for forward in (True, False):
        reading = members if forward else members[::-1]
        assert index_after_message(missing, reading, False, forward=forward) == 2  # noqa: FBT003
        assert index_after_message(missing, reading, True, forward=forward) == 1  # noqa: FBT003


def test_a_member_of_another_time_proves_that_a_message_was_deleted() -> None:
    members = [native(200, "0001"), native(201, "0000")]
    missing = f"{200:013x}0002"
    assert index_after_message(missing, members, False, forward=True) == 1  # noqa: FBT003
    members = [native(200, "0003"), native(199, "0009")]
    assert index_after_message(missing, members, False, forward=False) == 1  # noqa: FBT003


def test_the_members_before_a_message_are_counted() -> None:
    members = [native(100), native(200, "0001"), native(200, "0003"), native(300)]
    counts = [count_before(members, member_id(member)) for member in members]
    assert counts == [0, 1, 2, 3]
    assert count_before(members, f"{99:013x}0000") == 0
    assert count_before(members, f"{100:013x}ffff") == 1
    assert count_before(members, f"{250:013x}0000") == 3
    assert count_before(members, f"{999:013x}0000") == 4
    assert count_before([], f"{1:013x}0000") == 0


async def index_of(redis: Redis, live: str, missing: str = "", *, now: float) -> SessionIndex:
    """Return an index of one-letter sessions in ascending order; only the live ones exist."""
    for offset, name in enumerate(sorted(live + missing)):
        await redis.zadd("chat:sessions", {name: now + 100 + offset})
        if name in live:
            await redis.zadd(f"chat:session:{name}", {"member": 1.0})
    return SessionIndex(redis)


async def page(index: SessionIndex, after: str | None = None, *, limit: int = 3) -> SessionPage:
    return await index.page(limit=limit, after=after, before=None, oldest_first=True)


async def test_a_page_of_sessions_is_filled_by_several_reads() -> None:
    async with FakeAsyncRedis() as redis:
        index = await index_of(redis, "aegh", "bcdf", now=time.time())
        first = await page(index)
        assert (first.sessions, first.total_sessions) == (["a", "e", "g"], 4)
        assert first.cursor is not None
        assert first.cursor.startswith("g@")
        assert await page(index, first.cursor) == SessionPage(
            sessions=["h"], total_sessions=4, cursor=None
        )
        assert await redis.zrange("chat:sessions", 0, -1) == [b"a", b"e", b"g", b"h"]


async def test_a_page_of_sessions_ends_early_after_a_number_of_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_index, "MAX_READS", 2)
    async with FakeAsyncRedis() as redis:
        now = time.time()
        index = await index_of(redis, "yz", "abcdefghi", now=now)
        pages = [await page(index, limit=2)]
        while cursor := pages[-1].cursor:
            pages.append(await page(index, cursor, limit=2))
    # The first page has read six entries, none of which has a session.
    assert pages == [
        SessionPage(sessions=[], total_sessions=5, cursor=f"f@{now + 105!r}"),
        SessionPage(sessions=["y", "z"], total_sessions=2, cursor=None),
    ]


async def test_a_full_page_that_ends_early_continues_after_the_last_entry_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_index, "MAX_READS", 2)
    async with FakeAsyncRedis() as redis:
        now = time.time()
        index = await index_of(redis, "az", "bcdefghi", now=now)
        found = await page(index, limit=1)
    assert found == SessionPage(sessions=["a"], total_sessions=8, cursor=f"c@{now + 102!r}")


async def test_an_entry_that_is_not_utf_8_is_listed_or_removed() -> None:
    async with FakeAsyncRedis() as redis:
        index = await index_of(redis, "a", now=time.time())
        await redis.zadd("chat:sessions", {b"\xff": time.time() + 500, b"\xfe": time.time() + 600})
        await redis.zadd(b"chat:session:\xff", {"member": 1.0})
        assert (await page(index)).sessions == ["a", "\N{REPLACEMENT CHARACTER}"]
        assert await redis.zrange("chat:sessions", 0, -1) == [b"a", b"\xff"]
        cut = await index.page(limit=1, after=None, before=None, oldest_first=False)
        assert cut.cursor is not None
        assert cut.cursor.startswith("\N{REPLACEMENT CHARACTER}@")


async def test_an_expired_cursor_continues_with_the_live_sessions() -> None:
    async with FakeAsyncRedis() as redis:
        now = time.time()
        index = await index_of(redis, "abc", now=now)
        # Redis has not deleted the key yet.
        await redis.zadd("chat:sessions", {"expired": now - 50})
        await redis.zadd("chat:session:expired", {"member": 1.0})
        assert (await page(index, f"x@{now - 100!r}")).sessions == ["a", "b", "c"]
        newest_first = await index.page(
            limit=9, after=f"b@{now + 101!r}", before=None, oldest_first=False
        )
        assert newest_first == SessionPage(sessions=["a"], total_sessions=3, cursor=None)


@pytest.mark.parametrize(
    ("limit", "oldest_first", "sessions", "cursor"),
    [
        (2, False, ["f", "e"], "f"),
        (3, False, ["g", "f", "e"], None),
        (2, True, ["b", "c"], "b"),
        (3, True, ["a", "b", "c"], None),
    ],
)
async def test_a_page_before_a_session_contains_the_nearest_ones(
    limit: int, sessions: list[str], cursor: str | None, *, oldest_first: bool
) -> None:
    async with FakeAsyncRedis() as redis:
        index = await index_of(redis, "abcdefg", now=time.time())
        found = await index.page(limit=limit, after=None, before="d", oldest_first=oldest_first)
    assert found.sessions == sessions
    assert (found.cursor and found.cursor.partition("@")[0]) == cursor


async def test_a_page_between_two_sessions_ends_before_the_second() -> None:
    async with FakeAsyncRedis() as redis:
        index = await index_of(redis, "abcdef", now=time.time())
        found = await index.page(limit=2, after="b", before="e", oldest_first=True)
        assert found == SessionPage(sessions=["c", "d"], total_sessions=6, cursor=None)
        found = await index.page(limit=1, after="b", before="e", oldest_first=True)
        assert found.cursor is not None
        found = await index.page(limit=1, after=found.cursor, before="e", oldest_first=True)
        assert found == SessionPage(sessions=["d"], total_sessions=6, cursor=None)


async def test_a_page_between_two_sessions_may_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_index, "MAX_READS", 2)
    async with FakeAsyncRedis() as redis:
        now = time.time()
        index = await index_of(redis, "ayz", "bcdefghi", now=now)
        found = await index.page(limit=2, after="a", before="z", oldest_first=True)
        assert (found.sessions, found.cursor) == ([], f"g@{now + 106!r}")
        found = await index.page(limit=2, after=found.cursor, before="z", oldest_first=True)
        assert found == SessionPage(sessions=["y"], total_sessions=3, cursor=None)


@pytest.mark.parametrize(
    ("after", "before", "param"),
    [
        ("unknown", None, "after"),
        (None, "unknown", "before"),
        ("a", "unknown", "before"),
        ("unknown", "a", "after"),
        ("a@", None, "after"),
        ("a@nan", None, "after"),
    ],
)
async def test_an_unknown_cursor_is_rejected_with_its_parameter(
    after: str | None, before: str | None, param: str
) -> None:
    async with FakeAsyncRedis() as redis:
        index = await index_of(redis, "a", now=time.time())
        with pytest.raises(SessionNotFound) as rejected:
            await index.page(limit=1, after=after, before=before, oldest_first=False)
    assert rejected.value.param == param
