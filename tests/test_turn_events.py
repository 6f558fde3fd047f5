"""The events of a turn in memory: old ones are stored as text, and followers see no difference."""

import gc
import random
import tracemalloc

import orjson
import pytest

from groqchat import sse
from groqchat.services.turns.events import BLOCK_EVENTS, TurnEvents
from groqchat.services.turns.turn import Turn

START = sse.encode_event(b"{}", name="start", number=1)


def delta(text: str, number: int) -> bytes:
    return sse.encode_event(orjson.dumps({"text": text}), name="delta", number=number)


def texts(count: int) -> list[str]:
    rng = random.Random(7)  # noqa: S311 - not used for security
    return [rng.choice(["a", "für ", '"\n', "日本語", "🙂", ""]) for _ in range(count)]


def turn_events(parts: list[str], final: bytes = b"") -> tuple[TurnEvents, list[bytes]]:
    """Return the events of a turn, and the same events as a list."""
    events, expected = TurnEvents(), [START]
    events.add(START)
    for text in parts:
        events.add_text(text)
        expected.append(delta(text, len(expected) + 1))
    if final:
        events.add(final)
        expected.append(final)
    return events, expected


@pytest.mark.parametrize("count", [0, 1, BLOCK_EVENTS, 2 * BLOCK_EVENTS, 5 * BLOCK_EVENTS + 3])
def test_events_that_are_stored_as_text_are_encoded_as_before(count: int) -> None:
    final = sse.encode_event(b'{"message":""}', name="done", number=count + 2)
    events, expected = turn_events(texts(count), final)
    assert list(events) == expected
    assert len(events) == len(expected)
    assert (events[0], events[-1]) == (START, final)
    assert events[1:-1] == expected[1:-1]
    assert events.text == "".join(texts(count))
    with pytest.raises(IndexError):
        events[count + 2]


@pytest.mark.parametrize("max_bytes", [1, 500, 64 * 1024])
def test_a_follower_that_lags_receives_every_event_once(max_bytes: int) -> None:
    events, expected = turn_events(texts(1000))
    received, after = [], 0
    while after < len(events):
        joined, after = events.joined(after, max_bytes)
        received.append(joined)
    assert b"".join(received) == b"".join(expected)
    assert max(map(len, received)) <= max(max_bytes, *map(len, expected))


def test_events_without_a_text_are_never_stored_as_text() -> None:
    events = TurnEvents()
    raw = [b"data: %d\n\n" % number for number in range(1000)]
    for each in raw:
        events.add(each)
    assert list(events) == raw
    assert events.text == ""


def test_a_long_answer_needs_little_memory() -> None:
    words = [f"word{number % 1000:03} " for number in range(20_000)]
    turn = Turn("0" * 17, "s")
    gc.collect()
    tracemalloc.start()
    try:
        turn.add("start", b"{}")
        for number in range(len(words)):
            turn.add_text(words[number])
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 160 kB of text, a number for each event, and the latest events as they are.
    assert used < 350_000
