"""The Redis keys, and the commands that renew and delete them."""

import pytest

from groqchat.storage import keys


def test_each_kind_of_data_has_its_own_key() -> None:
    assert keys.session_key("s") == "chat:session:s"
    assert keys.turn_key("t") == "chat:turn:t"
    assert keys.claim_key("t") == "chat:claim:t"
    assert keys.idempotency_key("digest") == "chat:idempotency:digest"


@pytest.mark.parametrize(
    ("key", "session_id"),
    [
        (b"chat:session:s", "s"),
        (b"chat:session:chat:session:s", "chat:session:s"),
        ("chat:session:käse".encode(), "käse"),
        (b"chat:session:a\xff", "a\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_session_key_contains_its_session_id(key: bytes, session_id: str) -> None:
    assert keys.session_id_of(key) == session_id


@pytest.mark.parametrize(
    ("pttl_ms", "score"),
    [(2500, 1002.5), (1, 1000.001), (0, 1000.0), (-1, float("inf")), (-2, float("inf"))],
)
def test_a_session_is_indexed_by_the_time_when_its_key_expires(pttl_ms: int, score: float) -> None:
    assert keys.index_score(pttl_ms, 1000.0) == score


def test_a_write_renews_the_session_and_its_entry_in_the_index() -> None:
    assert keys.touch_session("s", ttl_s=60, now_s=1_700_000_000.25) == (
        ("EXPIRE", "chat:session:s", 60),
        ("ZADD", "chat:sessions", "1700000060250000e-6", "s"),
    )


def test_a_removal_from_the_index_does_not_delete_messages() -> None:
    assert keys.remove_from_index("s") == (("ZREM", "chat:sessions", "s"),)


def test_keys_of_a_session_are_linked_to_it_and_deleted_with_it() -> None:
    own = "{chat:session:s}:keys"
    assert keys.link_to_session("s", "a", "b", now_s=1000.5) == (
        ("ZREMRANGEBYSCORE", own, "-inf", 1000),
        ("ZADD", own, 8200, "a", 8200, "b"),
        ("EXPIRE", own, 7200),
    )
    assert keys.unlink_from_session("s", [b"a", b"b"]) == (
        ("UNLINK", b"a", b"b"),
        ("ZREM", own, b"a", b"b"),
    )
    assert keys.turn_id_of(keys.turn_key("t").encode()) == "t"
    assert keys.turn_id_of(keys.claim_key("t").encode()) is None


def test_a_turn_renews_its_events_and_its_claim() -> None:
    assert keys.touch_turn("t", 15) == (
        ("EXPIRE", "chat:turn:t", 15),
        ("EXPIRE", "chat:claim:t", 15),
    )
