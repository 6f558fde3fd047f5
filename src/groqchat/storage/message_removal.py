"""Removing messages from a session, which ends with its last message."""

from dataclasses import dataclass

from groqchat.storage import keys
from groqchat.storage.claims import OWNERSHIP, Claim, Transact
from groqchat.storage.errors import redis_errors
from groqchat.storage.session_index import SessionIndex

# Removes members, unless an answer follows them. Replies whether it has not ended before, and
# whether the session still exists.
# KEYS: perhaps those of OWNERSHIP; the session. ARGV: those of OWNERSHIP; the score after which an
# answer may be, or an empty text; the members.
SCRIPT = """
local key = KEYS[#KEYS]
if ARGV[3] ~= '' then
  local members = redis.call('ZRANGE', key, '(' .. ARGV[3], '+inf', 'BYSCORE', 'LIMIT', 0, 1)
  -- The role follows the id, at the start of a member.
  local start = string.sub(members[1] or '', 1, 60)
  if string.find(start, '"role":"assistant"', 1, true) then return {0} end
end
for at = 4, #ARGV do redis.call('ZREM', key, ARGV[at]) end
return {1, redis.call('EXISTS', key)}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Members to remove from a session.

    They stay if another attempt than that of `claim` owns the turn, or if an answer is the first
    message after the score `unless_answered`.
    """

    session_id: str
    members: tuple[bytes, ...]
    claim: Claim | None = None
    unless_answered: str = ""


class MessageRemover:
    """Removes messages; a session without messages is removed from the index."""

    def __init__(self, transact: Transact, index: SessionIndex, *, timeout_s: float) -> None:
        self._transact = transact
        self._index = index
        self._timeout_s = timeout_s

    async def remove(self, removal: Removal) -> None:
        """Remove messages in one step."""
        claim, session_id = removal.claim, removal.session_id
        names = *(claim.names if claim else ()), keys.session_key(session_id)
        owner = claim.owner if claim else ("", "")
        script = OWNERSHIP + SCRIPT if claim else SCRIPT
        arguments = *owner, removal.unless_answered, *removal.members
        (reply,) = await self._transact([("EVAL", script, len(names), *names, *arguments)])
        if reply == [1, 0]:
            await self._transact(keys.remove_from_index(session_id))
            # A concurrent write may have created the session again: then it must be listed.
            async with redis_errors(self._timeout_s):
                await self._index.add_existing([session_id])
