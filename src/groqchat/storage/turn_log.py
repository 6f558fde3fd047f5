"""The events of running turns in Redis, so that any worker can go on with them or stop them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from groqchat.storage import keys
from groqchat.storage.batching import Batcher, Command

# What one look takes in; a follower that is far behind looks again.
READ_ENTRIES = 16
PIECE_BYTES = 64 * 1024
# Requests to stop that a worker may be behind; each is of one turn, and old within a second.
MAX_STOPS = 1000
FRAMES = b"frames"
LAST_EVENTS = frozenset({"done", "error"})
FRAME_BEGIN = b"id: "
FRAME_END = b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFrames:
    """Events that Redis has not got yet; `last` is the number of the last one.

    `ttl_s` is how long the turn is to live on, None where that needs no change.
    """

    turn_id: str
    frames: bytes
    last: int
    is_first: bool
    ttl_s: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Events behind a place; whether the turn is known, and has none behind these."""

    frames: bytes
    exists: bool
    is_over: bool


class TurnLog:
    """A Redis stream a turn: entries of several events, under the number of their last one."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    async def append(self, parts: Sequence[NewFrames]) -> list[bool]:
        """Store events of some turns; tells for each whether what went before is still there."""
        commands: list[Command] = []
        places: list[int | None] = []
        for part in parts:
            places.append(None if part.is_first or not part.frames else len(commands))
            key = keys.turn_key(part.turn_id)
            if part.frames:
                # A key that is gone must not come back with its middle alone.
                make = () if part.is_first else ("NOMKSTREAM",)
                commands.append(("XADD", key, *make, f"{part.last}-0", FRAMES, part.frames))
            if part.ttl_s is not None:
                commands += keys.keep_turn(part.turn_id, part.ttl_s)
        replies = await self._batcher.transact(commands)
        return [place is None or replies[place] is not None for place in places]

    async def read(self, turn_id: str, after: int) -> Replay:
        """Return the events behind a number, as many as are read at once."""
        key = keys.turn_key(turn_id)
        found, newest = await self._batcher.transact(
            [
                ("XRANGE", key, f"({after}-0", "+", "COUNT", READ_ENTRIES),
                ("XREVRANGE", key, "+", "-", "COUNT", 1),
            ]
        )
        frames = frames_behind(b"".join(fields[1] for _, fields in found), after)
        if not newest:
            return Replay(frames=frames, exists=False, is_over=False)
        end = last_frame(newest[0][1][1])
        seen = frame_number(last_frame(frames)) if frames else after
        is_over = seen >= frame_number(end) and parse_frame(end)[0] in LAST_EVENTS
        return Replay(frames=frames, exists=True, is_over=is_over)

    async def ask_to_stop(self, turn_id: str) -> None:
        """Tell every worker that a turn is to end."""
        await self._batcher.transact(
            [
                ("XADD", keys.STOPS, "MAXLEN", "~", MAX_STOPS, "*", "turn", turn_id),
                ("EXPIRE", keys.STOPS, keys.STOPS_TTL_S),
            ]
        )

    async def last_stop(self) -> str:
        """Return the place of the newest request to stop."""
        (found,) = await self._batcher.transact([("XREVRANGE", keys.STOPS, "+", "-", "COUNT", 1)])
        return found[0][0].decode() if found else "0-0"

    async def stops(self, after: str) -> tuple[list[str], str]:
        """Return the turns that are to end, and the place to go on from."""
        (found,) = await self._batcher.transact(
            [("XRANGE", keys.STOPS, f"({after}", "+", "COUNT", MAX_STOPS)]
        )
        last = found[-1][0].decode() if found else after
        return [fields[1].decode() for _, fields in found], last


def frames_behind(frames: bytes, after: int) -> bytes:
    """Return the events with a number above `after`; one may have been stored twice."""
    kept: list[bytes] = []
    for frame in frames.split(FRAME_END)[:-1]:
        number = frame_number(frame)
        if number > after:
            after = number
            kept.append(frame + FRAME_END)
    return b"".join(kept)


def pieces(frames: bytes) -> Iterator[bytes]:
    """Yield several events in parts that are not much larger than PIECE_BYTES."""
    begin = 0
    while begin < len(frames):
        end = frames.find(FRAME_END, begin + PIECE_BYTES)
        end = len(frames) if end < 0 else end + len(FRAME_END)
        yield frames[begin:end]
        begin = end


def last_frame(frames: bytes) -> bytes:
    """Return the last of several events, without its end."""
    return frames.removesuffix(FRAME_END).rpartition(FRAME_END)[2]


def parse_frame(frame: bytes) -> tuple[str, bytes]:
    """Return the name of an event and its data, which are JSON."""
    _, event, data = frame.removesuffix(FRAME_END).split(b"\n", 2)
    return event.removeprefix(b"event: ").decode(), data.removeprefix(b"data: ")


def frame_number(frame: bytes) -> int:
    """Return the number in the first line of an event."""
    return int(frame[len(FRAME_BEGIN) : frame.index(b"\n")])
