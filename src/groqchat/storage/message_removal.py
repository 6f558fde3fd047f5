"""Removing messages from a session, and pins that prevent it.

A request that contains messages of another request pins them. If Groq rejects the other request,
they stay until no request has pinned them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from groqchat.storage import keys
from groqchat.storage.claims import (
    ALLOW_RELEASED_CLAIM,
    CHECK_CLAIM,
    READ_CLAIM,
    Claim,
    Transact,
)
from groqchat.storage.errors import redis_errors
from groqchat.storage.keys import Command
from groqchat.storage.messages import Message, member_id
from groqchat.storage.session_index import SessionIndex

# `all`: removes every message. `rejected`: removes the messages of a rejected request; a message
# that another request has pinned is only marked as rejected. `unpin`: removes the pins of one
# request, and each message that is marked as rejected and has no other pin.
Mode: TypeAlias = Literal["all", "rejected", "unpin"]

# Removes messages. Returns 1 and whether the session still exists.
# KEYS: those of CHECK_CLAIM, if there is a claim; the session; the pins of each message.
# ARGV: those of CHECK_CLAIM; the number of KEYS before the pins, the TTL of the pins in seconds,
# the mode, the request whose pins are removed, the members in the order of the pins.
REMOVAL_SCRIPT = """
local before, mode = tonumber(ARGV[3]), ARGV[5]
local session = KEYS[before]
for at = 7, #ARGV do
  local pins = KEYS[before + at - 6]
  if mode == 'unpin' then redis.call('SREM', pins, ARGV[6]) end
  local is_rejected = redis.call('SISMEMBER', pins, 'rejected')
  local is_pinned = redis.call('SCARD', pins) > is_rejected
  if mode == 'all' or not is_pinned and (mode == 'rejected' or is_rejected == 1) then
    redis.call('ZREM', session, ARGV[at])
    redis.call('UNLINK', pins)
  elseif mode == 'rejected' then
    redis.call('SADD', pins, 'rejected')
    redis.call('EXPIRE', pins, ARGV[4])
  end
end
return {1, redis.call('EXISTS', session)}
"""
CLAIMED_REMOVAL_SCRIPT = READ_CLAIM + ALLOW_RELEASED_CLAIM + CHECK_CLAIM + REMOVAL_SCRIPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Members to remove from a session, unless an attempt other than that of `claim` owns the turn.

    `request_id`: the request whose pins are removed, in the mode `unpin`.
    """

    session_id: str
    members: tuple[bytes, ...]
    claim: Claim | None = None
    mode: Mode = "all"
    request_id: str = ""

    def command(self) -> Command:
        """Return the command that removes the members.

        Redis returns [0] if another attempt owns the turn, otherwise [1, exists].
        """
        names = *(self.claim.names if self.claim else ()), keys.session_key(self.session_id)
        owner = self.claim.owner if self.claim else ("", "")
        pins = [keys.pins_key(self.session_id, member_id((each, 0.0))) for each in self.members]
        options = len(names), keys.SESSION_KEYS_TTL_S, self.mode, self.request_id
        script = CLAIMED_REMOVAL_SCRIPT if self.claim else REMOVAL_SCRIPT
        count = len(names) + len(pins)
        return ("EVAL", script, count, *names, *pins, *owner, *options, *self.members)


class MessageRemover:
    """Removes and pins messages; a session without messages is removed from the index."""

    def __init__(self, transact: Transact, index: SessionIndex, *, timeout_s: float) -> None:
        self._transact = transact
        self._index = index
        self._timeout_s = timeout_s

    async def pin(
        self, session_id: str, messages: Sequence[Message], request_id: str, claim: Claim | None
    ) -> bool:
        """Pin messages that another request has stored; return whether all of them exist."""
        key = keys.session_key(session_id)
        commands: list[Command] = []
        for each in messages:
            commands += keys.pin_message(session_id, each.id, request_id)
            commands.append(("ZCOUNT", key, each.score_text, each.score_text))
        transact = partial(claim.execute, self._transact) if claim else self._transact
        return all((await transact(commands))[2::3])

    async def remove(self, removal: Removal) -> None:
        """Remove messages in one step."""
        (reply,) = await self._transact([removal.command()])
        if reply == [1, 0]:
            await self._transact(keys.remove_from_index(removal.session_id))
            # A concurrent write may have created the session again: then it must be listed.
            async with redis_errors(self._timeout_s):
                await self._index.add_existing([removal.session_id])
