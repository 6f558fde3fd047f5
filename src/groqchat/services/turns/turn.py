"""A turn with events: one user message and its answer, which several clients can follow."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, TypeAlias

import orjson

from groqchat.errors import REJECTIONS, CompletionTimeout, GroqChatError, ShuttingDown
from groqchat.fields import MAX_EVENTS
from groqchat.services.turns.events import TurnEvents
from groqchat.sse import MAX_WRITE_BYTES, encode_event, event_number, parse_event
from groqchat.storage import keys
from groqchat.storage.claims import Claim, check_attempt, position_of, superseded

EventName: TypeAlias = Literal["start", "delta", "done", "error"]
# Why a turn ends before its answer is complete: a client stopped it, its client disconnected, the
# service shuts down, or another worker runs the turn.
StopReason: TypeAlias = Literal["stopped", "disconnected", "shutdown", "superseded"]

# Most failures of Groq arrive within this time. A stream that fails in it is answered with an HTTP
# status and Retry-After. If neither text nor a failure arrives, the response starts with `start`.
FIRST_TEXT_WAIT_S = 1.0
# The number of the event that follows `start`.
SECOND_EVENT = 2


class TurnFailed(Exception):
    """A turn failed before its first text; `data` is the JSON of its `error` event."""

    def __init__(self, turn_id: str, data: bytes) -> None:
        super().__init__(turn_id)
        self.turn_id = turn_id
        self.data = data


class Turn:
    """The state of a turn that runs in its own task: its events and whether it is stopped.

    Followers, which are clients that receive the events, read from one shared list, so a slow
    follower needs no buffer of its own. The events of a chat turn are numbered from 1; those of a
    further attempt at a turn, from a higher number. The turn of the OpenAI-compatible endpoint
    contains Groq's bytes instead and has no numbers.

    `claim`: the turn has an Idempotency-Key, through which other requests may follow it.
    `is_private`: only the request that started the turn may follow it, and Redis has no events.
    `error`: set by the service that runs the turn.
    """

    def __init__(
        self,
        turn_id: str,
        session_id: str,
        *,
        claim: Claim | None = None,
        is_private: bool = False,
    ) -> None:
        self.id = turn_id
        self.session_id = session_id
        self.claim = claim
        self.is_private = is_private
        self.events = TurnEvents(claim.first_number if claim else 1)
        self.is_over = False
        # Whether the final event, `done` or `error`, was added.
        self.has_outcome = False
        self.error: GroqChatError | None = None
        self.stop_reason: StopReason | None = None
        # Whether the answer was cut short by a stop.
        self.is_incomplete = False
        self._waiting: list[asyncio.Future[None]] = []
        self._followers: list[Follower] = []
        self._limit: asyncio.Timeout | None = None
        # Whether the request to Groq has ended.
        self._is_complete = False
        self._is_abandoned = False
        # Whether another attempt runs the turn, so that this one ends without an outcome.
        self.is_superseded = False

    def add(self, name: EventName, data: dict[str, Any] | bytes) -> None:
        """Add an event and wake the followers; `data` is encoded as JSON unless it is bytes."""
        self.has_outcome = name in {"done", "error"}
        json = data if isinstance(data, bytes) else orjson.dumps(data)
        self.events.add(encode_event(json, name=name, number=self.events.next_number))
        self._wake()

    def add_text(self, text: str) -> None:
        """Add a `delta` event and wake the followers."""
        self.events.add_text(text)
        self._wake()

    def add_raw(self, data: bytes) -> None:
        """Add bytes from Groq, which are forwarded unchanged."""
        if data:
            self.events.add(data)
            if self._is_abandoned:
                self.events.discard(len(self.events))
            self._wake()

    def abandon(self) -> None:
        """Keep no events for the follower of a private turn, because it has disconnected."""
        self._is_abandoned = True
        self.events.discard(len(self.events))

    def end(self) -> None:
        """Mark the end of the events and wake the followers."""
        self.is_over = True
        self._wake()

    def follow(self, after: int = 0) -> "Follower":
        """Return an iterator over the events after a number."""
        return Follower(self, self.position(after))

    async def wait_for_text(self) -> None:
        """Wait for the first text, at most FIRST_TEXT_WAIT_S; TurnFailed if the turn failed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TEXT_WAIT_S):
                while len(self.events) < SECOND_EVENT and not self.is_over:
                    await self._next_wake()
        raise_early_failure(self.id, self.events[-1] if self.events else b"")

    def position(self, number: int) -> int:
        """Return how many events a client has whose last event has this number.

        Raises TurnLost if the event belongs to an earlier attempt at the turn.
        """
        if not number:
            return 0
        attempt = self.claim.attempt if self.claim else 0
        check_attempt(self.id, number, newest=attempt)
        return number - attempt * MAX_EVENTS

    def next_events(self, after: int) -> tuple[bytes, int]:
        """Join the events after the first `after`, up to about MAX_WRITE_BYTES.

        Returns them and how many events precede the next one. At least one event must follow.
        """
        return self.events.joined(after, MAX_WRITE_BYTES)

    async def final_event(self) -> bytes:
        """Wait for the end of the turn and return its last event."""
        async for _ in self.follow():
            pass
        return self.events[-1]

    def stop(self, reason: StopReason) -> None:
        """Interrupt the request to Groq; only the first reason counts, and none after its end.

        The service that runs the turn stores the text that has arrived.
        """
        if self.stop_reason is None and not self._is_complete:
            self.stop_reason = reason
            self._interrupt()

    def supersede(self) -> None:
        """Interrupt the request to Groq, because another attempt runs the turn."""
        if not self.has_outcome:
            self.is_superseded = True
            self.stop("superseded")

    @asynccontextmanager
    async def stoppable(self, timeout_s: float) -> AsyncIterator[None]:
        """Run a block that `stop` can interrupt.

        If the turn is stopped, the block is cancelled and left without an exception. After
        `timeout_s`, or if the block itself raises TimeoutError, raises CompletionTimeout. If Groq
        rejects the prompt, another block may follow.
        """
        is_rejected = False
        try:
            async with asyncio.timeout(timeout_s) as self._limit:
                if self.stop_reason is not None:
                    self._interrupt()
                yield
        except TimeoutError as error:
            if self.stop_reason is None:
                raise CompletionTimeout(f"not complete within {timeout_s:g} s") from error
        except REJECTIONS:
            is_rejected = not self.events.text
            raise
        finally:
            self._limit = None
            self._is_complete = not is_rejected

    @property
    def retention_s(self) -> int:
        """How long Redis retains the events after the end of the turn, in seconds."""
        is_answer = self.claim is not None and not self.is_repeatable
        return keys.IDEMPOTENCY_TTL_S if is_answer else keys.TURN_RETENTION_S

    @property
    def is_repeatable(self) -> bool:
        """Whether another request with the Idempotency-Key runs the turn again."""
        if self.claim is None:
            return False
        is_failed = bool(self.events) and b"\nevent: error\n" in self.events[-1]
        return is_failed or (self.is_incomplete and self.stop_reason == "disconnected")

    @property
    def rejects_new_requests(self) -> bool:
        """Whether a request that comes now must wait until it may run the turn again."""
        return self.is_repeatable if self.is_over else self.stop_reason == "disconnected"

    def stop_error(self) -> GroqChatError | None:
        """Return the error of a turn that the service stopped; other stops are no errors."""
        if self.stop_reason == "superseded":
            return superseded(self.id)
        return ShuttingDown() if self.stop_reason == "shutdown" else None

    def _interrupt(self) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    def _next_wake(self) -> asyncio.Future[None]:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        return waiting

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()
        if self._followers:
            self._followers = [each for each in self._followers if each.waits_for_more()]

    def add_follower(self, follower: "Follower") -> None:
        """Tell a follower of each event that is added, and of the end."""
        self._followers.append(follower)

    def remove_follower(self, follower: "Follower") -> None:
        """Forget a follower that waits no more."""
        if follower in self._followers:
            self._followers.remove(follower)


class Follower(AsyncIterator[bytes]):
    """Yields the events of a turn until the last one; events that are ready are joined.

    `push`: receives an event that is added while the follower waits, without a switch to its task,
    and returns whether it took it. Raises TurnLost at the end of an attempt that another one has
    superseded.
    """

    def __init__(self, turn: Turn, after: int) -> None:
        self.push: Callable[[bytes], bool] | None = None
        self._turn = turn
        # How many events precede the next one.
        self._after = after
        self._more: asyncio.Future[None] | None = None

    async def __anext__(self) -> bytes:
        """Return the next events, as many as one write should have."""
        turn = self._turn
        if turn.is_private:
            # There is no other follower.
            turn.events.discard(self._after)
        while self._after >= len(turn.events):
            if turn.is_over:
                if turn.is_superseded and not turn.has_outcome:
                    raise superseded(turn.id)
                raise StopAsyncIteration
            await self._wait()
        events, self._after = turn.next_events(self._after)
        return events

    def waits_for_more(self) -> bool:
        """Pass on the event that was added, or end the wait; return whether the wait goes on."""
        turn, more = self._turn, self._more
        if more is None or more.done():
            return False
        is_next = self._after == len(turn.events) - 1
        if is_next and self.push is not None and self.push(turn.events.last):
            self._after += 1
            if turn.is_private:
                turn.events.discard(self._after)
            return True
        more.set_result(None)
        return False

    async def _wait(self) -> None:
        self._more = asyncio.get_running_loop().create_future()
        self._turn.add_follower(self)
        try:
            await self._more
        except asyncio.CancelledError:
            self._turn.remove_follower(self)
            raise
        finally:
            self._more = None


def raise_early_failure(turn_id: str, last_event: bytes) -> None:
    """Raise TurnFailed if the latest event of a turn is an `error` before the first text."""
    if last_event:
        name, data = parse_event(last_event)
        if name == "error" and position_of(event_number(last_event)) <= SECOND_EVENT:
            raise TurnFailed(turn_id, data)
