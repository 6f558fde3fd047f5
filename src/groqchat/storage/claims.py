"""Claims: which attempt at the turn of an Idempotency-Key may write, and the numbers of its events.

Redis has one claim for each turn; the attempt with its token owns the turn. An attempt whose worker
paused for longer than the lease may have lost the claim to a newer attempt, and must stop. Redis
compares the tokens in a script. A write has no effect if another attempt owns the turn, if a newer
attempt has begun, or if its own attempt has ended, even if Redis executes it late or twice.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from groqchat.errors import TurnLost
from groqchat.fields import MAX_EVENTS
from groqchat.storage import keys
from groqchat.storage.keys import Command
from groqchat.storage.message_ids import ID_DIGITS

Transact: TypeAlias = Callable[[Sequence[Command]], Awaitable[list[Any]]]

# Claims a turn that nobody owns, and deletes the events of earlier attempts. If the TTL of a claim
# is above the lease and the turn has no events, the turn is over and Redis has lost its events: it
# is claimed again. Returns whether the token owns the turn, and the number of attempts. A second
# execution with the same token counts no further attempt.
# KEYS: claim, attempts, events. ARGV: token, TTLs of claim and attempts in seconds.
CLAIM_SCRIPT = f"""
local holder = redis.call('GET', KEYS[1])
if holder == '{keys.RELEASED}' then holder = false end
if holder and redis.call('EXISTS', KEYS[3]) == 0
    and redis.call('TTL', KEYS[1]) > tonumber(ARGV[2]) then
  holder = false
end
if not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  if redis.call('INCR', KEYS[2]) > 1 then redis.call('UNLINK', KEYS[3]) end
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  holder = ARGV[1]
end
return {{holder == ARGV[1] and 1 or 0, redis.call('GET', KEYS[2]) or '1'}}
"""
# The parts of a script that checks the claim.
# KEYS: claim, attempts. ARGV: token, number of attempts.
READ_CLAIM = """
local holder, count = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
"""
# An attempt that has ended may still remove messages.
ALLOW_RELEASED_CLAIM = f"""
if holder == '{keys.RELEASED}' then holder = false end
"""
# Returns {0} if another attempt owns the turn, or if nobody does and a newer attempt has begun.
CHECK_CLAIM = """
if holder and holder ~= ARGV[1] or not holder and count and count ~= ARGV[2] then return {0} end
"""
# Executes commands, after the check of the claim. If nobody owns the turn, the token claims it,
# unless the lease is 0 or the record was deleted. Returns 1, whether the record of the
# Idempotency-Key names the turn, and the replies to the commands. If a command fails, the script
# stops, deletes a claim that it has just created, and returns the error.
# KEYS: claim, attempts, record. ARGV: token, number of attempts, turn id, lease of the claim and
# TTL of the attempts, both in seconds; then the commands, each as the number of its arguments and
# the arguments, its name included.
FENCED_COMMANDS = """
local record = redis.call('GET', KEYS[3])
local has_record = record and string.find(record, ARGV[3], 1, true)
if has_record and ARGV[4] ~= '0' then
  if not holder then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[4]) end
  if not count then redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[5]) end
end
local replies, at = {1, has_record and 1 or 0}, 6
while ARGV[at] do
  local last = at + tonumber(ARGV[at])
  local reply = redis.pcall(unpack(ARGV, at + 1, last))
  if type(reply) == 'table' and reply.err then
    if not holder then redis.call('UNLINK', KEYS[1]) end
    return reply
  end
  replies[#replies + 1] = reply
  at = last + 1
end
return replies
"""
FENCE_SCRIPT = READ_CLAIM + CHECK_CLAIM + FENCED_COMMANDS


class FenceReply(NamedTuple):
    """The replies to the commands of a fence, and whether the record names the turn."""

    replies: Sequence[Any]
    has_record: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The claim of one attempt at a turn; the first attempt has the number 0.

    `turn_id` starts with the id of the user message. `record_key`: the key of the record of the
    Idempotency-Key, which is deleted with the session.
    """

    turn_id: str
    token: str
    record_key: str
    attempt: int = 0

    @property
    def message_id(self) -> str:
        """The id of the user message of the turn."""
        return self.turn_id[:ID_DIGITS]

    @property
    def first_number(self) -> int:
        """The number of the first event of the attempt.

        The numbers of two attempts never overlap, so a follower notices that a turn was run again.
        """
        return self.attempt * MAX_EVENTS + 1

    @property
    def names(self) -> tuple[str, str]:
        """The keys of `CHECK_CLAIM`."""
        return keys.claim_key(self.turn_id), keys.attempts_key(self.turn_id)

    @property
    def owner(self) -> tuple[str, int]:
        """The arguments of `CHECK_CLAIM`."""
        return self.token, self.attempt + 1

    def fence(self, commands: Sequence[Command], *, lease_s: int = keys.TURN_LEASE_S) -> Command:
        """Return a command that executes `commands` unless another attempt owns the turn.

        If nobody owns it, it is claimed for `lease_s`, unless that is 0 or the record was deleted.
        """
        words: list[str | bytes | int | float] = []
        for command in commands:
            words += (len(command), *command)
        names = *self.names, self.record_key
        own = *self.owner, self.turn_id, lease_s, keys.IDEMPOTENCY_TTL_S
        return ("EVAL", FENCE_SCRIPT, len(names), *names, *own, *words)

    def check_reply(self, reply: Sequence[Any]) -> FenceReply:
        """Return the reply to a fence; raise TurnLost if another attempt owns the turn."""
        found = parse_fence_reply(reply)
        if found is None:
            raise superseded(self.turn_id)
        return found

    async def execute(self, transact: Transact, commands: Sequence[Command]) -> list[Any]:
        """Execute commands in a fence; raise TurnLost if another attempt owns the turn."""
        (reply,) = await transact([self.fence(commands)])
        return list(self.check_reply(reply).replies)

    async def release(self, transact: Transact) -> None:
        """Let the next request run the turn, unless another attempt owns it."""
        commands = keys.delete_attempt(self.turn_id, self.attempt)
        await transact([self.fence(commands, lease_s=0)])


def claim_turn(turn_id: str, token: str) -> Command:
    """Return the command that claims a turn for a token, if nobody owns it.

    `parse_claim_reply` explains its reply.
    """
    names = keys.claim_key(turn_id), keys.attempts_key(turn_id), keys.turn_key(turn_id)
    ttls = keys.TURN_LEASE_S, keys.IDEMPOTENCY_TTL_S
    return ("EVAL", CLAIM_SCRIPT, len(names), *names, token, *ttls)


def parse_claim_reply(reply: Sequence[Any]) -> int | None:
    """Return the number of the attempt, None if another attempt owns the turn."""
    is_owner, count = reply
    return int(count) - 1 if is_owner else None


def parse_fence_reply(reply: Sequence[Any]) -> FenceReply | None:
    """Return the reply to a fence, None if another attempt owns the turn."""
    is_owner, *rest = reply
    return FenceReply(replies=rest[1:], has_record=bool(rest[0])) if is_owner else None


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
