"""Server-sent events: encoding, parsing, and the selection of events after a number."""

import time

import pytest

from groqchat import sse
from groqchat.sse import DataParser, EventBuffer

DELTA = b'{"text":"data: \\n\\n"}'


def events(*numbers: int) -> bytes:
    return b"".join(sse.encode_event(b"{}", name="delta", number=number) for number in numbers)


@pytest.mark.parametrize(
    ("name", "number", "event"),
    [
        (None, None, b"data: {}\n\n"),
        ("done", None, b"event: done\ndata: {}\n\n"),
        ("done", 12, b"id: 12\nevent: done\ndata: {}\n\n"),
        ("done", 0, b"id: 0\nevent: done\ndata: {}\n\n"),
        (None, 12, b"data: {}\n\n"),
    ],
)
def test_an_event_has_its_fields_on_one_line_each(
    name: str | None, number: int | None, event: bytes
) -> None:
    assert sse.encode_event(b"{}", name=name, number=number) == event


@pytest.mark.parametrize("data", [b"{}", DELTA, b'{"text":"event: x"}', b"data: data: x"])
@pytest.mark.parametrize("has_end", [True, False])
def test_a_parsed_event_has_the_name_and_data_that_were_encoded(
    data: bytes, *, has_end: bool
) -> None:
    event = sse.encode_event(data, name="delta", number=7)
    event = event if has_end else event.removesuffix(b"\n\n")
    assert sse.parse_event(event) == ("delta", data)
    assert sse.event_number(event) == 7


@pytest.mark.parametrize("number", [0, 9, 10, 1_234_567])
def test_the_number_of_an_event_is_its_id(number: int) -> None:
    assert sse.event_number(sse.encode_event(b"1\n", name="n", number=number)) == number


@pytest.mark.parametrize(
    ("text", "last"),
    [
        (events(1), b"id: 1\nevent: delta\ndata: {}"),
        (events(1, 2, 3), b"id: 3\nevent: delta\ndata: {}"),
        (b"", b""),
    ],
)
def test_the_last_event_has_no_empty_line(text: bytes, last: bytes) -> None:
    assert sse.last_event(text) == last


@pytest.mark.parametrize(
    ("text", "after", "found"),
    [
        (events(1, 2, 3), 0, events(1, 2, 3)),
        (events(1, 2, 3), 1, events(2, 3)),
        (events(1, 2, 3), 3, b""),
        (events(9, 10, 11), 9, events(10, 11)),
        (events(1, 2, 1, 2, 3), 0, events(1, 2, 3)),
        (events(1, 2, 2, 3), 1, events(2, 3)),
        (b"", 0, b""),
    ],
)
def test_events_after_a_number_are_selected_once_each(
    text: bytes, after: int, found: bytes
) -> None:
    assert sse.events_after(text, after) == found


def test_a_write_ends_with_the_event_that_reaches_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = len(events(1))
    monkeypatch.setattr(sse, "MAX_WRITE_BYTES", 2 * size - 1)
    assert list(sse.split_writes(events(1, 2, 3, 4, 5))) == [
        events(1, 2, 3),
        events(4, 5),
    ]
    monkeypatch.setattr(sse, "MAX_WRITE_BYTES", 2 * size - 2)
    assert list(sse.split_writes(events(1, 2, 3, 4, 5))) == [
        events(1, 2),
        events(3, 4),
        events(5),
    ]
    assert list(sse.split_writes(b"")) == []


def test_a_buffer_returns_events_when_they_are_complete() -> None:
    buffer = EventBuffer()
    assert buffer.feed(b"data: 1\n") == b""
    assert buffer.feed(b"\ndata: 2\n\nda") == b"data: 1\n\ndata: 2\n\n"
    assert buffer.feed(b"ta: 3\n\n") == b"data: 3\n\n"
    assert buffer.flush() == b""


def test_a_buffer_accepts_line_ends_of_both_kinds() -> None:
    buffer = EventBuffer()
    assert buffer.feed(b"data: 1\r\n\r") == b""
    assert buffer.feed(b"\ndata: 2") == b"data: 1\r\n\r\n"
    assert buffer.feed(b"\n\ndata: 3\r\n\r\nd") == b"data: 2\n\ndata: 3\r\n\r\n"
    assert buffer.feed(b"ata: 4\r\n\r\ndata: 5\n\n6") == b"data: 4\r\n\r\ndata: 5\n\n"
    assert buffer.flush() == b"6\n\n"


def test_a_buffer_accepts_line_ends_of_cr() -> None:
    buffer = EventBuffer()
    assert buffer.feed(b"data: 1\r") == b""
    assert buffer.feed(b"\rdata: 2\n\r\nd") == b"data: 1\r\rdata: 2\n\r\n"
    assert buffer.feed(b"ata: 3\r\r") == b"data: 3\r\r"
    assert buffer.pending_bytes == 0


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("rest", [b"data: 1", b"data: X", b"data: 1 "])
def test_the_incomplete_event_at_the_end_of_a_stream_is_completed(rest: bytes, end: bytes) -> None:
    buffer = EventBuffer()
    assert buffer.feed(rest + end) == b""
    assert buffer.flush() == rest + b"\n\n"
    assert buffer.flush() == b""


def test_the_size_of_an_incomplete_event_is_known() -> None:
    buffer = EventBuffer()
    assert buffer.pending_bytes == 0
    buffer.feed(b"data: 1\n\nda")
    assert buffer.pending_bytes == len(b"da")
    buffer.feed(b"ta: 2\n")
    assert buffer.pending_bytes == len(b"data: 2\n")
    buffer.feed(b"\n")
    assert buffer.pending_bytes == 0


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_a_buffer_accepts_chunks_of_any_size(end: bytes, size: int) -> None:
    stream = b"".join(b"data: %d" % number + end for number in range(50))
    buffer = EventBuffer()
    found = b""
    for begin in range(0, len(stream), size):
        events = buffer.feed(stream[begin : begin + size])
        assert events == b"" or events.endswith(end)
        found += events
    assert (found, buffer.pending_bytes) == (stream, 0)


@pytest.mark.parametrize("kind", [EventBuffer, DataParser])
def test_the_time_for_an_event_that_never_ends_is_linear(
    kind: type[EventBuffer | DataParser],
) -> None:
    """A chunk costs as much after 8 MB as at the start; a copy of 8 MB takes 100 times as long."""
    parser = kind()

    def time_s() -> float:
        begin = time.process_time()
        for _ in range(500):
            parser.feed(b"x" * 64)
        return time.process_time() - begin

    at_start_s = min(time_s() for _ in range(5))
    parser.feed(b"x" * 8_000_000)
    assert min(time_s() for _ in range(5)) < 20 * at_start_s


@pytest.mark.parametrize("flood", [b"\n" * 60_000, b":\n\n" * 20_000, b":\r\n\r\n" * 12_000])
def test_the_time_for_a_flood_without_data_is_that_of_a_search(flood: bytes) -> None:
    """A split into lines takes a hundred times as long."""
    parser = DataParser()

    def time_s(chunk: bytes) -> float:
        begin = time.process_time()
        for _ in range(10):
            assert parser.feed(chunk) == []
        return time.process_time() - begin

    one_comment = b":" + b"x" * len(flood) + b"\n\n"
    search_s = min(time_s(one_comment) for _ in range(5))
    assert min(time_s(flood) for _ in range(5)) < 10 * max(search_s, 0.0001)


def test_line_ends_at_the_start_of_the_rest_are_not_removed() -> None:
    buffer = EventBuffer()
    assert buffer.feed(b"\ndata: 1") == b""
    assert buffer.flush() == b"\ndata: 1\n\n"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_data_is_extracted_from_chunks_of_any_size(size: int, end: bytes) -> None:
    stream = (
        b': comment\nevent: x\ndata: {"a":1}\n\ndata:{"b":2}\n\n'
        b'id: 4\ndata: \t"data: c" \n\n\nretry: 5\n\ndatabase: x\n\n'
        b"data: [\nid: 5\ndata:\ndata:4]\n\n"
        b"data\n\ndata:\n\ndata: \n\ndata: {}\n\ndata: [DONE]\n\n"
    ).replace(b"\n", end)
    parser = DataParser()
    found: list[bytes] = []
    for begin in range(0, len(stream), size):
        found += parser.feed(stream[begin : begin + size])
    assert found == [b'{"a":1}', b'{"b":2}', b'"data: c"', b"[\n\n4]", b"{}", b"[DONE]"]
    assert parser.pending_bytes == 0


@pytest.mark.parametrize(
    ("chunk", "data"),
    [
        (b"data: 1\n\n", [b"1"]),
        (b"data:1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data: 1\n\n: comment\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data: 1\n\ndata: 2\ndata: 3\n\ndata: 4\n\n", [b"1", b"2\n3", b"4"]),
        (b"data: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"data: 1\nid: 2\n\n", [b"1"]),
        (b"data: 1\n\r\ndata: 2\r\n\ndata: 3\n\rdata: 4\r\r", [b"1", b"2", b"3", b"4"]),
        (b"data:\n\n", []),
        (b"data: \n\ndata: 1\n\n", [b"1"]),
        (b"\xef\xbb\xbfdata: 1\n\n", [b"1"]),
        (b"\n\n\ndata: 1\n\n\n", [b"1"]),
    ],
)
def test_the_data_of_an_event_is_its_data_lines(chunk: bytes, data: list[bytes]) -> None:
    assert DataParser().feed(chunk + b"\n") == data
    parser = DataParser()
    assert parser.feed(chunk) == data
    assert parser.feed(b"data: 9\n\n") == [b"9"]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_the_data_of_an_event_without_its_end_is_completed_by_one(line_end: bytes) -> None:
    parser = DataParser()
    assert parser.feed(b"data: 1" + line_end) == []
    assert parser.feed(sse.EVENT_END) == [b"1"]


def test_an_incomplete_event_is_the_rest_of_a_parser() -> None:
    parser = DataParser()
    assert parser.pending_bytes == 0
    assert parser.feed(b"data: 1\n\ndata") == [b"1"]
    assert parser.pending_bytes == len(b"data")
    assert parser.feed(b": 2\n") == []
    assert parser.pending_bytes == len(b"data: 2\n")
    assert parser.feed(b"\n") == [b"2"]
    assert parser.pending_bytes == 0
