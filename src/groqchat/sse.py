"""Server-sent events: the one encoder and the one parser.

Format: WHATWG HTML, section "Server-sent events". The events of a turn have the fields `id`,
`event` and `data`, in this order, each on one line; `data` is JSON.
"""

from collections.abc import Iterator

CONTENT_TYPE = "text/event-stream"
PING = b": ping\n\n"
EVENT_END = b"\n\n"
DATA = b"data:"
# The marks that may end an event of another server, whose lines end with LF, CRLF or CR. After
# other mixtures of these, an event is only released together with the next one.
EVENT_ENDS = (EVENT_END, b"\n\r\n", b"\r\r")
# All but the last byte of the longest mark.
MAX_OVERLAP_BYTES = 2
# May precede the first event.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The usual limit of one write; limits the service's memory for a slow client. A write contains
# complete events, so it may exceed this by one event.
MAX_WRITE_BYTES = 64 * 1024


def encode_event(data: bytes, *, name: str | None = None, number: int | None = None) -> bytes:
    """Return one event; `data` is JSON on one line.

    `number` is the event's id and requires a `name`.
    """
    if number is not None and name is not None:
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (number, name.encode(), data)
    return (
        b"data: %b\n\n" % data
        if name is None
        else b"event: %b\ndata: %b\n\n" % (name.encode(), data)
    )


def parse_event(event: bytes) -> tuple[str, bytes]:
    """Return the name and the JSON data of one event with the three fields of the service."""
    _, name, data = event.removesuffix(EVENT_END).split(b"\n", 2)
    return name.removeprefix(b"event: ").decode(), data.removeprefix(b"data: ")


def event_number(event: bytes) -> int:
    """Return the number in the `id` line, which is the first line of an event."""
    return int(event[len(b"id: ") : event.index(b"\n")])


def last_event(events: bytes) -> bytes:
    """Return the last of several events, without the empty line that ends it."""
    return events.removesuffix(EVENT_END).rpartition(EVENT_END)[2]


def events_after(events: bytes, number: int) -> bytes:
    """Return the events with a higher number; an event that is present twice is returned once."""
    found: list[bytes] = []
    for event in events.split(EVENT_END)[:-1]:
        if event_number(event) > number:
            number = event_number(event)
            found.append(event + EVENT_END)
    return b"".join(found)


def split_writes(events: bytes) -> Iterator[bytes]:
    """Yield several events in parts of about MAX_WRITE_BYTES, each of them complete events."""
    begin = 0
    while begin < len(events):
        end = events.find(EVENT_END, begin + MAX_WRITE_BYTES)
        end = len(events) if end < 0 else end + len(EVENT_END)
        yield events[begin:end]
        begin = end


class EventBuffer:
    """Collects the chunks of another server's stream and releases complete events.

    The time is linear in the bytes, even if an event arrives in many small chunks.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def pending_bytes(self) -> int:
        """The size of the event that is not complete yet. The caller limits it."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> bytes:
        """Return all events that are complete after this chunk, empty if there are none."""
        rest = self._rest
        if not rest and chunk.endswith(EVENT_END):
            return chunk
        # A mark may start in the earlier chunks, which contain no whole one.
        searched = max(len(rest) - MAX_OVERLAP_BYTES, 0)
        rest += chunk
        end = end_of_events(rest, searched)
        events = bytes(rest[:end])
        del rest[:end]
        return events

    def flush(self) -> bytes:
        """Return what is left at the end of the stream, as a complete event."""
        rest = bytes(self._rest.rstrip(b"\r\n"))
        self._rest.clear()
        return rest + EVENT_END if rest else b""


def end_of_events(data: bytes | bytearray, begin: int = 0) -> int:
    """Return the index after the last event that ends after `begin`, 0 if there is none."""
    ends = ((data.rfind(mark, begin), mark) for mark in EVENT_ENDS)
    return max(index + len(mark) if index >= 0 else 0 for index, mark in ends)


class DataParser:
    """Extracts the data of events from chunks that may end anywhere.

    The time is linear in the bytes, even if an event arrives in many small chunks.
    """

    def __init__(self) -> None:
        self._buffer = EventBuffer()
        # The size of the event that is not complete yet. The caller limits it.
        self.pending_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that are complete after this chunk and have data."""
        if not self.pending_bytes and chunk.startswith(DATA) and b"\r" not in chunk:
            # The usual chunk has one event, or a few, each on one line.
            lines = chunk.split(b"\n")
            if len(lines) == 3 and not (lines[1] or lines[2]):  # noqa: PLR2004 - two line ends
                data = lines[0][len(DATA) :].strip()
                return [data] if data else []
            if len(lines) % 2 and not (lines[-1] or any(lines[1::2])):
                return [
                    data
                    for line in lines[::2]
                    if line.startswith(DATA) and (data := line[len(DATA) :].strip())
                ]
        events = self._buffer.feed(chunk)
        self.pending_bytes = self._buffer.pending_bytes
        return _data_of(events)


def _data_of(events: bytes) -> list[bytes]:
    """Return the data of each event that has any."""
    if b"data" not in events:
        # A flood of empty lines or comments costs no more than this search.
        return []
    events = events.removeprefix(BYTE_ORDER_MARK)
    events = events.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found = [_joined_data(event) for event in events.split(EVENT_END) if event]
    return [data for data in found if data]


def _joined_data(event: bytes) -> bytes:
    """Return the `data` lines of an event as one text."""
    values = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values).strip()
