"""Messages: their ids, and their members in Redis."""

import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groqchat.fields import MESSAGE_ID_PATTERN
from groqchat.storage.message_ids import (
    MAX_SCORE_S,
    MESSAGE_ID,
    iso_time,
    micros_of,
    new_message_id,
)
from groqchat.storage.messages import (
    ROLES,
    Message,
    decode_context,
    decode_member,
    encode_member,
    member_id,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MESSAGES = st.builds(
    Message,
    id=st.integers(0, 2**52 - 1).map(lambda micros: f"{micros:013x}00ff"),
    role=st.sampled_from(sorted(ROLES)),
    content=TEXT,
    model=st.none() | TEXT,
    tokens=st.none() | st.integers(0, 2**53),
    finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
).filter(lambda message: message.score <= MAX_SCORE_S)


@given(MESSAGES)
def test_a_message_is_unchanged_after_encoding_and_decoding(message: Message) -> None:
    assert float(message.score_text) == message.score
    decoded = decode_member(encode_member(message), message.score)
    finish_reason = message.finish_reason
    if message.role != "assistant" and finish_reason == "stop":
        finish_reason = None
    assert decoded == Message(
        id=message.id,
        role=message.role,
        content=message.content,
        model=message.model,
        tokens=message.tokens,
        finish_reason=finish_reason,
    )


@given(st.integers(0, int(MAX_SCORE_S) * 10**6))
def test_a_score_preserves_the_microseconds_of_the_id(micros: int) -> None:
    message = Message(id=f"{micros:013x}abcd", role="user", content="")
    # Redis stores the score as a double and returns it as text.
    assert round(float(repr(message.score)) * 10**6) == micros_of(message.id) == micros


def test_ids_sort_by_time_and_each_has_its_own_microsecond() -> None:
    ids = [new_message_id() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len({each[:13] for each in ids}) == 10_000
    assert all(MESSAGE_ID.fullmatch(each) for each in ids)


def test_an_id_contains_the_current_time() -> None:
    created = datetime.fromisoformat(iso_time(micros_of(new_message_id())))
    assert abs((datetime.now(UTC) - created).total_seconds()) < 5


@given(st.binary(max_size=60), st.floats(allow_nan=False))
def test_any_member_with_any_score_is_decoded_without_an_error(member: bytes, score: float) -> None:
    decode_member(member, score)
    assert re.fullmatch(MESSAGE_ID_PATTERN, member_id((member, score)))


@given(
    st.recursive(st.none() | st.booleans() | st.integers(0, 9) | TEXT, st.lists),
    st.sampled_from(["id", "role", "content", "model", "tokens", "finish_reason"]),
)
def test_any_value_in_any_field_is_decoded_without_an_error(value: object, field: str) -> None:
    fields = {"id": "0" * 17, "role": "assistant", "content": "text", field: value}
    message = decode_member(json.dumps(fields).encode(), 1.7e9)
    is_valid = isinstance(value, str) and (field != "role" or value in ROLES)
    if field in {"role", "content"} and not is_valid:
        assert message is None
    else:
        assert message is not None
        assert decode_member(encode_member(message), message.score) is not None


@pytest.mark.parametrize("score", [-1.0, float("inf"), float("-inf"), 1e300])
def test_a_member_with_an_invalid_score_is_not_a_message(score: float) -> None:
    assert decode_member(b'{"role":"user","content":"x"}', score) is None


def test_members_of_other_programs_have_different_ids() -> None:
    ids = {
        member_id((json.dumps({"role": "user", "content": text}).encode(), 1.7e9))
        for text in ("a", "b", "c")
    }
    assert len(ids) == 3
    assert {each[:13] for each in ids} == {f"{1_700_000_000_000_000:013x}"}


@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.integers(-(2**80), 2**80)
        | st.floats(allow_nan=False, allow_infinity=False)
        | TEXT,
        lambda values: st.lists(values) | st.dictionaries(TEXT, values),
    )
)
def test_extra_fields_are_unchanged_after_encoding_and_decoding(value: object) -> None:
    message = Message(id="0" * 17, role="user", content="x", extra={"value": value})
    decoded = decode_member(encode_member(message), message.score)
    assert decoded is not None
    assert decoded.extra == {"value": value}


def test_integers_beyond_64_bits_remain_exact_next_to_a_lone_surrogate() -> None:
    member = b'{"role":"user","content":"\\ud800","extra":{"n":%d,"s":"\\ud800"}}' % (2**70 + 1)
    decoded = decode_member(member, 1.7e9)
    assert decoded is not None
    assert (decoded.content, decoded.extra) == ("?", {"n": 2**70 + 1, "s": "?"})


def test_integers_beyond_the_range_of_floats_do_not_hide_a_message() -> None:
    message = Message(id="0" * 17, role="user", content="x", extra={"n": 10**400})
    assert decode_member(encode_member(message), message.score) == message
    assert decode_context([encode_member(message)], session_id="s") == [
        {"role": "user", "content": "x"}
    ]


def test_a_large_number_in_deeply_nested_fields_does_not_hide_a_message() -> None:
    deep = b'{"role":"user","content":"x","extra":{"n":%b%d%b}}' % (b"[" * 900, 2**70, b"]" * 900)
    assert decode_member(deep, 1.7e9) is not None
