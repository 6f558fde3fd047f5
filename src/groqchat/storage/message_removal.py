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
from groqchat.storage.messages import Message
from groqchat.storage.session_index import SessionIndex

# `all`: removes every message. `rejected`: removes the messages of a rejected request; a message
# that another request has pinned is only marked as rejected. `unpin`: removes the pins of one
# request, and each message that is marked as rejected and has no other pin.
Mode: TypeAlias = Literal["all", "rejected", "unpin"]

# Removes messages. Returns 1 and whether the session still exists.
# KEYS: those of CHECK_CLAIM, if there is a claim; the session, its pins. ARGV: those of
# CHECK_CLAIM; the TTL of the pins in seconds, the mode, the request whose pins are removed, the
# members.
REMOVAL_SCRIPT = """
local session, pins, mode, request = KEYS[#KEYS - 1], KEYS[#KEYS], ARGV[4], ARGV[5]
local entries = mode == 'all' and {} or redis.call('SMEMBERS', pins)
for at = 6, #ARGV do
  -- A member starts with {"id":" and 17 digits.
  local id, is_rejected, is_pinned = string.sub(ARGV[at], 8, 24), mode == 'rejected', false
  for _, entry in ipairs(entries) do
    if string.sub(entry, 1, 17) == id then
      local by = string.sub(entry, 19)
      if by == 'rejected' then is_rejected = true elseif by ~= request then is_pinned = true end
    end
  end
  if mode == 'unpin' then redis.call('SREM', pins, id .. ' ' .. request) end
  if mode == 'all' or is_rejected and not is_pinned then
    redis.call('ZREM', session, ARGV[at])
    redis.call('SREM', pins, id .. ' rejected')
  elseif mode == 'rejected' then
    redis.call('SADD', pins, id .. ' rejected')
  end
end
redis.call('EXPIRE', pins, ARGV[3])
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
        claim, session_id = self.claim, self.session_id
        session = keys.session_key(session_id), keys.pins_key(session_id)
        names = *(claim.names if claim else ()), *session
        owner = claim.owner if claim else ("", "")
        arguments = *owner, keys.SESSION_KEYS_TTL_S, self.mode, self.request_id, *self.members
        script = CLAIMED_REMOVAL_SCRIPT if claim else REMOVAL_SCRIPT
        return ("EVAL", script, len(names), *names, *arguments)


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
        commands = [
            *keys.pin_messages(session_id, [message.id for message in messages], request_id),
            *(("ZCOUNT", key, each.score_text, each.score_text) for each in messages),
        ]
        transact = partial(claim.execute, self._transact) if claim else self._transact
        return all((await transact(commands))[2:])

    async def remove(self, removal: Removal) -> None:
        """Remove messages in one step."""
        (reply,) = await self._transact([removal.command()])
        if reply == [1, 0]:
            await self._transact(keys.remove_from_index(removal.session_id))
            # A concurrent write may have created the session again: then it must be listed.
            async with redis_errors(self._timeout_s):
                await self._index.add_existing([removal.session_id])
