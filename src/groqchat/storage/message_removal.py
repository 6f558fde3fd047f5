"""Removing messages from a session, which ends with its last message."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from groqchat.storage import keys
from groqchat.storage.claims import CHECK_CLAIM, MAY_HAVE_ENDED, READ_CLAIM, Claim, Transact
from groqchat.storage.errors import redis_errors
from groqchat.storage.keys import Command
from groqchat.storage.messages import Message
from groqchat.storage.session_index import SessionIndex

# Removes members, but no message that another request holds. Of the messages that a request holds,
# it removes those whose own request has given them up, as nobody else holds them. Replies whether
# the session still exists.
# KEYS: perhaps those of CHECK_CLAIM; the session, its holders. ARGV: those of CHECK_CLAIM; the TTL
# of the holders in seconds; the request that removes its own messages (`own`) or those that it
# holds, or an empty text, to remove all; the members.
SCRIPT = """
local key, holders, request = KEYS[#KEYS - 1], KEYS[#KEYS], ARGV[4]
local entries = request == '' and {} or redis.call('SMEMBERS', holders)
for at = 5, #ARGV do
  -- A member begins with its id.
  local id, is_given_up, is_held = string.sub(ARGV[at], 8, 24), request == 'own', false
  for _, entry in ipairs(entries) do
    if string.sub(entry, 1, 17) == id then
      local holder = string.sub(entry, 19)
      if holder == 'given up' then is_given_up = true
      elseif holder ~= request then is_held = true end
    end
  end
  if request == 'own' and is_held then redis.call('SADD', holders, id .. ' given up') end
  if request ~= 'own' then redis.call('SREM', holders, id .. ' ' .. request) end
  if request == '' or is_given_up and not is_held then
    redis.call('ZREM', key, ARGV[at])
    redis.call('SREM', holders, id .. ' given up')
  end
end
redis.call('EXPIRE', holders, ARGV[3])
return {redis.call('EXISTS', key)}
"""
KEYED_SCRIPT = READ_CLAIM + MAY_HAVE_ENDED + CHECK_CLAIM + SCRIPT
OWN = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Members to remove from a session.

    They stay if another attempt than that of `claim` owns the turn. With a `request`, they stay if
    another request holds them: `OWN` for the request that stored them, else the holder's name.
    """

    session_id: str
    members: tuple[bytes, ...]
    claim: Claim | None = None
    request: str = ""

    def command(self) -> Command:
        """Return the command that removes the members; it replies [0] if the session is empty."""
        claim, session_id = self.claim, self.session_id
        session = keys.session_key(session_id), keys.holders_key(session_id)
        names = *(claim.names if claim else ()), *session
        owner = claim.owner if claim else ("", "")
        arguments = *owner, keys.SESSION_KEYS_TTL_S, self.request, *self.members
        script = KEYED_SCRIPT if claim else SCRIPT
        return ("EVAL", script, len(names), *names, *arguments)


class MessageRemover:
    """Removes messages; a session without messages is removed from the index."""

    def __init__(self, transact: Transact, index: SessionIndex, *, timeout_s: float) -> None:
        self._transact = transact
        self._index = index
        self._timeout_s = timeout_s

    async def hold(
        self, session_id: str, messages: Sequence[Message], holder: str, claim: Claim | None
    ) -> bool:
        """Keep messages of another request, by a name; return whether all exist."""
        key = keys.session_key(session_id)
        commands = [
            *keys.hold_messages(session_id, [message.id for message in messages], holder),
            *(("ZCOUNT", key, each.score_text, each.score_text) for each in messages),
        ]
        transact = partial(claim.transact, self._transact) if claim else self._transact
        return all((await transact(commands))[2:])

    async def remove(self, removal: Removal) -> None:
        """Remove messages in one step."""
        (reply,) = await self._transact([removal.command()])
        if reply == [0]:
            await self._transact(keys.remove_from_index(removal.session_id))
            # A concurrent write may have created the session again: then it must be listed.
            async with redis_errors(self._timeout_s):
                await self._index.add_existing([removal.session_id])
