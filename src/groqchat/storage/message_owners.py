"""Owners of messages: if Groq rejects a request, it removes the messages that it owns.

A request owns the messages that it has stored. A later request that contains them, before they have
an answer, takes them over. So each message has one owner, the latest request that contains it.
"""

import time
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
from groqchat.storage.messages import Message, encode_member, member_id
from groqchat.storage.session_index import SessionIndex

# `all`: removes every message. `owned`: removes those that no other request owns. A message that
# was taken over stays if an answer follows it, because its first owner may have received it.
Mode: TypeAlias = Literal["all", "owned"]

# Messages at the end of a session, among which the script searches for the last answer.
MAX_UNANSWERED = 1000
# The start of a member that is no answer, as a Lua pattern: its role does not start with an `a`.
# The members of other programs do not match.
QUESTION = '^{"id":"%x+","role":"[^a]'

# Removes messages. Returns 1 and whether the session still exists.
# KEYS: those of CHECK_CLAIM, if there is a claim; the session; the owner of each message.
# ARGV: those of CHECK_CLAIM; the number of KEYS before the owners, the mode, the request, the
# members in the order of the owners.
REMOVAL_SCRIPT = f"""
local before, mode, request = tonumber(ARGV[3]), ARGV[4], ARGV[5]
local session, last_answer = KEYS[before], nil
local function is_unanswered(score)
  local place = 0
  while not last_answer do
    local last = redis.call('ZRANGE', session, place, place, 'REV', 'WITHSCORES')
    place = place + 1
    if not last[1] then last_answer = -1 end
    if last[1] and not string.find(last[1], '{QUESTION}') or place > {MAX_UNANSWERED} then
      last_answer = tonumber(last[2])
    end
  end
  return tonumber(score) > last_answer
end
for at = 6, #ARGV do
  local name = KEYS[before + at - 5]
  local owner, score = redis.call('GET', name), redis.call('ZSCORE', session, ARGV[at])
  if not score or mode == 'all' or not owner then
    redis.call('ZREM', session, ARGV[at])
  elseif (owner == request or owner == '{keys.REJECTED}') and is_unanswered(score) then
    redis.call('ZREM', session, ARGV[at])
    redis.call('SET', name, '{keys.REJECTED}', 'EX', {keys.SESSION_KEYS_TTL_S})
  end
end
return {{1, redis.call('EXISTS', session)}}
"""
CLAIMED_REMOVAL_SCRIPT = READ_CLAIM + ALLOW_RELEASED_CLAIM + CHECK_CLAIM + REMOVAL_SCRIPT

# Stores messages again that another request has taken over and removed. Returns 0, and stores
# nothing, if one of them is missing for another reason.
# KEYS: the session, the owner of each message. ARGV: the score and the member of each message.
RESTORE_SCRIPT = f"""
local missing = {{}}
for at = 1, #KEYS - 1 do
  local score = ARGV[2 * at - 1]
  if redis.call('ZCOUNT', KEYS[1], score, score) == 0 then
    if redis.call('GET', KEYS[at + 1]) ~= '{keys.REJECTED}' then return 0 end
    missing[#missing + 1] = at
  end
end
for _, at in ipairs(missing) do
  redis.call('ZADD', KEYS[1], ARGV[2 * at - 1], ARGV[2 * at])
end
return 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Members to remove from a session, unless an attempt other than that of `claim` owns the turn.

    `request_id` is the request that removes them, for the modes that compare it with the owner.
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
        attempt = self.claim.owner if self.claim else ("", "")
        owners = [keys.owner_key(self.session_id, member_id((each, 0.0))) for each in self.members]
        options = len(names), self.mode, self.request_id
        script = CLAIMED_REMOVAL_SCRIPT if self.claim else REMOVAL_SCRIPT
        count = len(names) + len(owners)
        return ("EVAL", script, count, *names, *owners, *attempt, *options, *self.members)


class MessageOwners:
    """Takes messages over, removes and restores them.

    A session without messages is removed from the index.
    """

    def __init__(self, transact: Transact, index: SessionIndex, *, timeout_s: float) -> None:
        self._transact = transact
        self._index = index
        self._timeout_s = timeout_s

    async def take_over(
        self, session_id: str, messages: Sequence[Message], request_id: str, claim: Claim | None
    ) -> bool:
        """Make a request the owner of messages; return whether all of them still exist."""
        key = keys.session_key(session_id)
        count = [("ZCOUNT", key, each.score_text, each.score_text) for each in messages]
        ids = [each.id for each in messages]
        own = keys.own_messages(session_id, ids, request_id, now_s=time.time())
        transact = partial(claim.execute, self._transact) if claim else self._transact
        return all((await transact([*count, *own]))[: len(ids)])

    async def restore(self, session_id: str, messages: Sequence[Message]) -> bool:
        """Store messages again if another request has removed them; return whether it has.

        A deletion of the session also deletes the owners: then nothing is stored.
        """
        if not messages:
            return False
        names = [keys.owner_key(session_id, each.id) for each in messages]
        words = [word for each in messages for word in (each.score_text, encode_member(each))]
        count, key = len(names) + 1, keys.session_key(session_id)
        (exist,) = await self._transact([("EVAL", RESTORE_SCRIPT, count, key, *names, *words)])
        return bool(exist)

    async def remove(self, removal: Removal) -> None:
        """Remove messages in one step."""
        (reply,) = await self._transact([removal.command()])
        if reply == [1, 0]:
            await self._transact(keys.remove_from_index(removal.session_id))
            # A concurrent write may have created the session again: then it must be listed.
            async with redis_errors(self._timeout_s):
                await self._index.add_existing([removal.session_id])
