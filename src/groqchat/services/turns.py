"""All turns that can be followed and stopped: those of this process, by Redis those of others."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import orjson

from groqchat.background import beside
from groqchat.errors import (
    HistoryFailed,
    HistoryUnavailable,
    StorageError,
    TurnLost,
    TurnNotFound,
)
from groqchat.services.turn import StopReason, Turn
from groqchat.storage import keys
from groqchat.storage.messages import MICROS_PER_S, STOPPED, micros_of
from groqchat.storage.turn_log import (
    NewFrames,
    Replay,
    TurnLog,
    frame_number,
    last_frame,
    parse_frame,
    pieces,
)

# Events of a turn go to Redis together once so much time has passed, so that it sees few writes.
COALESCE_S = 0.025
# Turns whose events share a transaction.
MAX_GROUP = 64
# A piece of each turn goes at a time; so many are more than the longest answer has.
LAST_ROUNDS = 100
# Requests to stop are looked for so often, while a turn runs that they could be for.
STOPS_EVERY_S = 0.1
LEASE_EVERY_S = keys.TURN_LEASE_S / 3
# One who follows a turn of another process looks so often, more seldom while nothing comes.
FOLLOW_MIN_S = 0.025
FOLLOW_MAX_S = 0.2
# A turn that is over is kept until Redis has its events, or for this long.
UNPUBLISHED_KEPT_S = 60.0
# A turn is stopped within a fraction of a second; its worker may be busy, or gone.
STOP_WAIT_S = 5.0
# A turn that began so recently may not have reached Redis yet.
NEW_TURN_S = 2.0
# Behind every event there is.
MAX_NUMBER = 2**53

StopResult: TypeAlias = Literal["stopped", "finished", "stopping"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Local:
    """A turn of this process, and what Redis has of it."""

    turn: Turn
    frames: int = 0
    is_ending: bool = False
    is_over: bool = False
    renewed_at: float = -LEASE_EVERY_S
    over_since: float | None = None

    def is_due(self, now: float) -> bool:
        """Tell whether Redis lacks anything that it should have."""
        if self.turn.is_private:
            return False
        behind = self.frames < len(self.turn.frames) or self.turn.is_over != self.is_over
        return behind or self._ttl_s(now) is not None

    def news(self, now: float) -> NewFrames:
        """Return what Redis has not got yet."""
        turn = self.turn
        frames, last = b"", self.frames
        if last < len(turn.frames):
            frames, last = turn.piece(last)
        self.is_ending = turn.is_over and last == len(turn.frames)
        return NewFrames(
            turn_id=turn.id,
            frames=frames,
            last=last,
            is_first=self.frames == 0,
            ttl_s=self._ttl_s(now),
        )

    def note(self, news: NewFrames, now: float) -> None:
        """Remember that Redis has got it."""
        self.frames = news.last
        self.is_over = self.is_ending
        if news.ttl_s is not None:
            self.renewed_at = now

    def begin_again(self) -> None:
        """Take it that Redis has nothing of the turn any more."""
        self.frames = 0
        self.is_over = False
        self.renewed_at = -LEASE_EVERY_S

    def _ttl_s(self, now: float) -> int | None:
        if self.is_ending:
            return None if self.is_over else self.turn.kept_s
        return keys.TURN_LEASE_S if now - self.renewed_at >= LEASE_EVERY_S else None


class Turns:
    """Keeps the turns of this process, and their events in Redis up to date.

    `describe` gives what an error event holds.
    """

    def __init__(self, turn_log: TurnLog, describe: Callable[[Exception], dict[str, Any]]) -> None:
        self._log = turn_log
        self.describe = describe
        self._local: dict[str, _Local] = {}
        self._began = asyncio.Event()
        self._stops_seen = "0-0"
        self._stops_looked_at = 0.0
        self._failing = False

    def add(self, turn: Turn) -> None:
        """Let a turn of this process be followed and stopped from anywhere."""
        self._local[turn.id] = _Local(turn)
        self._began.set()

    def stop_all(self, reason: StopReason) -> None:
        """Stop the turns of this process."""
        for local in list(self._local.values()):
            local.turn.stop(reason)

    async def follow(self, turn_id: str, after: int = 0) -> AsyncIterator[bytes] | None:
        """Return an iterator over the events behind a number, None where there will be none.

        TurnNotFound where there is no such turn.
        """
        local = self._local.get(turn_id)
        if local is not None and not local.turn.is_private:
            turn = local.turn
            return None if turn.is_over and after >= len(turn.frames) else turn.follow(after)
        replay = await self._read_known(turn_id, after)
        if replay.is_over and not replay.frames:
            return None
        return self._follow_remote(turn_id, after, replay)

    async def stop(self, turn_id: str) -> StopResult:
        """End a turn wherever it runs, and return what became of it within STOP_WAIT_S."""
        local = self._local.get(turn_id)
        events = await self.follow(turn_id)
        if local is not None:
            local.turn.stop("stopped")
        elif not (await self._log.read(turn_id, MAX_NUMBER)).is_over:
            await self._log.ask_to_stop(turn_id)
        try:
            async with asyncio.timeout(STOP_WAIT_S):
                frames = await last_of(events)
        except TimeoutError:
            return "stopping"
        end = orjson.loads(parse_frame(last_frame(frames))[1])
        return "stopped" if end.get("finish_reason") == STOPPED else "finished"

    async def _read_known(self, turn_id: str, after: int) -> Replay:
        """Read a turn's events; one that has only just begun may take a moment to be known."""
        replay = await self._log.read(turn_id, after)
        age_s = time.time() - micros_of(turn_id) / MICROS_PER_S
        while not replay.exists and abs(age_s) < NEW_TURN_S:
            await asyncio.sleep(FOLLOW_MIN_S)
            age_s += FOLLOW_MIN_S
            replay = await self._log.read(turn_id, after)
        if not replay.exists:
            raise TurnNotFound
        return replay

    @asynccontextmanager
    async def published(self) -> AsyncIterator[None]:
        """Keep Redis up to date within the block, and to the last event at its end."""
        try:
            async with beside(self._publish_for_ever()):
                yield
        finally:
            with suppress(StorageError):
                for _ in range(LAST_ROUNDS):
                    await self._publish()

    async def _follow_remote(
        self, turn_id: str, after: int, replay: Replay
    ) -> AsyncIterator[bytes]:
        wait_s = FOLLOW_MIN_S
        loop = asyncio.get_running_loop()
        read_at = loop.time()
        while True:
            if replay.frames:
                for piece in pieces(replay.frames):
                    yield piece
                after = frame_number(last_frame(replay.frames))
                wait_s = FOLLOW_MIN_S
            if replay.is_over:
                return
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, FOLLOW_MAX_S)
            try:
                replay = await self._log.read(turn_id, after)
            except HistoryUnavailable:
                # Redis may be back before the turn is given up.
                if loop.time() - read_at > keys.TURN_LEASE_S:
                    raise
                replay = Replay(frames=b"", exists=True, is_over=False)
                continue
            read_at = loop.time()
            if not replay.exists:
                raise TurnLost(f"turn {turn_id}")

    async def _publish_for_ever(self) -> None:
        while True:
            is_new = not self._began.is_set()
            await self._began.wait()
            await asyncio.sleep(COALESCE_S)
            try:
                if is_new:
                    # Older requests were for turns that are over, if under the same id.
                    self._stops_seen = await self._log.last_stop()
                await self._publish()
                await self._obey_stops()
                self._failing = False
            except StorageError as error:
                if not self._failing:
                    log.warning("turns can be followed in this process only: %s", error)
                self._failing = True
            except Exception:
                log.exception("publishing events failed")
            self._forget_ended()

    async def _publish(self) -> None:
        now = asyncio.get_running_loop().time()
        due = [local for local in self._local.values() if local.is_due(now)]
        for at in range(0, len(due), MAX_GROUP):
            group = due[at : at + MAX_GROUP]
            try:
                await self._append(group, now)
            except HistoryFailed:
                # One that fails makes all fail that it shares a call with.
                for local in group:
                    await self._append_alone(local, now)

    async def _append(self, group: Sequence[_Local], now: float) -> None:
        news = [local.news(now) for local in group]
        known = await self._log.append(news)
        for local, sent, is_known in zip(group, news, known, strict=True):
            if is_known:
                local.note(sent, now)
            else:
                local.begin_again()

    async def _append_alone(self, local: _Local, now: float) -> None:
        sent = local.news(now)
        try:
            await self._log.append([sent])
        except HistoryFailed as error:
            # What Redis has already, or what it will never take.
            log.info("events of turn %s were not stored: %s", sent.turn_id, error)
        local.note(sent, now)

    async def _obey_stops(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._stops_looked_at < STOPS_EVERY_S:
            return
        self._stops_looked_at = now
        asked, self._stops_seen = await self._log.stops(self._stops_seen)
        for turn_id in asked:
            if turn_id in self._local:
                self._local[turn_id].turn.stop("stopped")

    def _forget_ended(self) -> None:
        now = asyncio.get_running_loop().time()
        for local in list(self._local.values()):
            if not local.turn.is_over:
                continue
            local.over_since = local.over_since or now
            if (
                local.is_over
                or local.turn.is_private
                or now - local.over_since > UNPUBLISHED_KEPT_S
            ):
                del self._local[local.turn.id]
        if not self._local:
            self._began.clear()


async def last_of(events: AsyncIterator[bytes] | None) -> bytes:
    """Wait for the end of some events and return the last ones."""
    last = b""
    if events is not None:
        async for frames in events:
            last = frames
    return last
