"""Server-sent events: the one encoder and the one parser.

Format: WHATWG HTML, section "Server-sent events". The events of a turn have the fields `id`,
`event` and `data`, in this order, each on one line; `data` is JSON.
"""

from collections.abc import Iterator

CONTENT_TYPE = "text/event-stream"
PING = b": ping\n\n"
EVENT_END = b"\n\n"
DATA = b"data:"
# The marks that may end an event of another server.
EVENT_ENDS = (EVENT_END, b"\r\n\r\n")
# All but the last byte of the longest mark.
MAX_OVERLAP_BYTES = 3
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
        end = max(_end_of_last(mark, rest, searched) for mark in EVENT_ENDS)
        events = bytes(rest[:end])
        del rest[:end]
        return events

    def flush(self) -> bytes:
        """Return what is left at the end of the stream, as a complete event."""
        rest = bytes(self._rest.rstrip(b"\r\n"))
        self._rest.clear()
        return rest + EVENT_END if rest else b""


def _end_of_last(mark: bytes, data: bytearray, begin: int) -> int:
    """Return the index after the last mark in the data from `begin` on, 0 if there is none."""
    index = data.rfind(mark, begin)
    return index + len(mark) if index >= 0 else 0


class DataParser:
    """Extracts the payloads of the `data` lines from chunks that may end anywhere in a line.

    Each payload must be on one line, as in the streams of Groq and OpenAI. The time is linear in
    the bytes, even if a line arrives in many small chunks.
    """

    def __init__(self) -> None:
        # The line that is not complete yet.
        self._rest = bytearray()

    @property
    def pending_bytes(self) -> int:
        """The size of the line that is not complete yet. The caller limits it."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the payloads of all `data` lines that are complete after this chunk."""
        if self._rest:
            self._rest += chunk
            if b"\n" not in chunk:
                return []
            chunk = bytes(self._rest)
            self._rest.clear()
        *lines, rest = chunk.split(b"\n")
        if rest:
            self._rest += rest
        return [line[len(DATA) :].strip() for line in lines if line.startswith(DATA)]
