"""Message ids: they sort by time, contain their time, and do not repeat."""

import random
import re
import time

import pytest

from groqchat.storage import message_ids
from groqchat.storage.message_ids import (
    MAX_SCORE_S,
    MESSAGE_ID,
    iso_time,
    micros_of,
    new_message_id,
)
from groqchat.storage.messages import decode_member, member_id

NOW_NS = 1_705_314_645_123_456_789
NOW_MICROS = 1_705_314_645_123_456


@pytest.fixture(autouse=True)
def own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of the test's own: the clock of the process never goes back to the present."""
    monkeypatch.setattr(message_ids, "_clock", message_ids._Clock())


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "1970-01-01T00:00:00.000000+00:00"),
        (1, "1970-01-01T00:00:00.000001+00:00"),
        (999_999, "1970-01-01T00:00:00.999999+00:00"),
        (1_000_000, "1970-01-01T00:00:01.000000+00:00"),
        (NOW_MICROS, "2024-01-15T10:30:45.123456+00:00"),
        (4_503_599_627_000_000, "2112-09-17T23:53:47.000000+00:00"),
    ],
)
def test_a_time_is_iso_8601_in_utc_with_microseconds(micros: int, text: str) -> None:
    assert iso_time(micros) == text


def test_the_first_13_digits_of_an_id_are_its_time() -> None:
    assert micros_of("060efc6f4d5c0ffff") == 0x060EFC6F4D5C0
    assert micros_of("0000000000010ffff") == 16
    assert micros_of("000000000000affff") == 10


def test_ids_of_one_moment_have_ascending_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: NOW_NS)

    micros = [micros_of(new_message_id()) for _ in range(3)]
    assert micros == [NOW_MICROS + offset for offset in range(3)]


def test_an_id_sorts_after_earlier_ids_when_the_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = new_message_id()
    monkeypatch.setattr(time, "time_ns", lambda: NOW_NS)

    after = new_message_id()
    assert before[:13] < after[:13]
    assert MESSAGE_ID.fullmatch(after)


@pytest.mark.parametrize(("number", "digits"), [(0, "0000"), (0xAB, "00ab"), (0x7FFF, "7fff")])
def test_an_id_ends_with_four_random_digits(
    monkeypatch: pytest.MonkeyPatch, number: int, digits: str
) -> None:
    asked: list[int] = []

    def bits(count: int) -> int:
        asked.append(count)
        return number

    monkeypatch.setattr(random, "getrandbits", bits)
    assert new_message_id()[13:] == digits
    assert asked == [15]


@pytest.mark.parametrize(
    ("score", "micros"),
    [(1000.5, 1_000_500_000), (-5.0, 0), (0.0, 0), (1e300, 4_503_599_627_000_000)],
)
def test_the_id_of_a_member_without_id_contains_its_time_and_a_digest(
    score: float, micros: int
) -> None:
    # The digest is blake2b of the member, with 8 bytes.
    assert member_id((b"{}", score)) == f"{micros:013x}01e7b720ff566d53"


@pytest.mark.parametrize("score", [0.0, MAX_SCORE_S])
def test_a_message_may_have_the_first_and_the_last_possible_time(score: float) -> None:
    decoded = decode_member(b'{"role":"user","content":"c"}', score)
    assert decoded is not None
    assert decoded.score == score


@pytest.mark.parametrize(
    "member",
    [
        b'{"id":"not an id"}',
        b'{"id":"0123456789ABCDEF0"}',
        b'{"id":"0123456789abcdef',
        b"1234567" + b"0" * 17,
        b'{"role":"user","id":"0123456789abcdef0"}',
    ],
)
def test_an_id_is_derived_unless_the_member_starts_with_an_id(member: bytes) -> None:
    derived = member_id((member, 1.0))
    assert derived[:13] == f"{1_000_000:013x}"
    assert re.fullmatch("[0-9a-f]{16}", derived[13:])
