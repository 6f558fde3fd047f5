"""Claims: which attempt at the turn of an Idempotency-Key may write, and the numbers of its events.

Redis has one claim for each turn; the attempt with its token owns the turn. An attempt whose worker
paused for longer than the lease may have lost the claim to a newer attempt, and must stop.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from groqchat.errors import TurnLost
from groqchat.fields import MAX_EVENTS
from groqchat.storage import keys
from groqchat.storage.keys import Command

Transact: TypeAlias = Callable[[Sequence[Command]], Awaitable[list[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The claim of one attempt at a turn; the first attempt has the number 0.

    `record_key`: the key of the record of the Idempotency-Key, which is deleted with the session.
    """

    turn_id: str
    token: str
    record_key: str
    attempt: int = 0

    @property
    def first_number(self) -> int:
        """The number of the first event of the attempt.

        The numbers of two attempts never meet, so a follower notices that a turn was run again.
        """
        return self.attempt * MAX_EVENTS + 1

    def state(self) -> tuple[Command, Command]:
        """Return the commands that reply whether the record exists, and whose the claim is."""
        return ("EXISTS", self.record_key), ("GET", keys.claim_key(self.turn_id))

    def is_held_by(self, holder: bytes | None) -> bool:
        """Return whether a value of the claim's key is the token of this attempt."""
        return holder == self.token.encode()

    async def confirm(self, holder: bytes | None, transact: Transact) -> bool:
        """Return whether this attempt owns the turn; claim it again if nobody does."""
        if holder is None:
            _, holder = await transact(keys.hold_claim(self.turn_id, self.token))
        return self.is_held_by(holder)

    async def release(self, transact: Transact) -> None:
        """Let the next request run the turn, unless another attempt holds its claim."""
        (holder,) = await transact([("GET", keys.claim_key(self.turn_id))])
        if self.is_held_by(holder):
            await transact(keys.forget_attempt(self.turn_id, self.attempt))


def superseded(turn_id: str) -> TurnLost:
    """Return the error for the clients of an attempt that is not the newest one."""
    return TurnLost(
        f"turn {turn_id} was run again",
        message="The turn was run again. Send the request again, with its Idempotency-Key.",
    )


def check_attempt(turn_id: str, number: int, *, newest: int) -> None:
    """Raise TurnLost if the event with this number belongs to an attempt before the newest one."""
    if attempt_of(number) < newest:
        raise superseded(turn_id)


def attempt_of(number: int) -> int:
    """Return the attempt to which the number of an event belongs."""
    return number // MAX_EVENTS


def position_of(number: int) -> int:
    """Return the position of an event in its attempt, from 1."""
    return number % MAX_EVENTS
