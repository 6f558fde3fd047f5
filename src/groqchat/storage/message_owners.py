"""Owners of messages: if Groq rejects a request, it removes the messages that it owns.

A request owns the messages that it has stored. A later request that contains them, before they have
an answer, takes them over. So each message has one owner, the latest request that contains it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from groqchat.storage import keys
from groqchat.storage.claims import (
    ALLOW_RELEASED_CLAIM,
    CHECK_CLAIM,
    READ_CLAIM,
    Claim,
    Transact,
    superseded,
)
from groqchat.storage.errors import redis_errors
from groqchat.storage.keys import Command
from groqchat.storage.messages import Message, encode_member, member_id
from groqchat.storage.session_index import SessionIndex

# `all`: removes every message. `owned`: removes those that no other request owns.
Mode: TypeAlias = Literal["all", "owned"]

# Removes messages. Returns 1 and whether the session still exists.
# KEYS: those of CHECK_CLAIM, if there is a claim; the session; the owner of each message.
# ARGV: those of CHECK_CLAIM; the number of KEYS before the owners, the mode, the request, the
# members in the order of the owners.
REMOVAL_SCRIPT = f"""
local before, mode, request = tonumber(ARGV[3]), ARGV[4], ARGV[5]
local session = KEYS[before]
for at = 6, #ARGV do
  local name = KEYS[before + at - 5]
  local owner = redis.call('GET', name)
  local is_owner = not owner or owner == request or owner == '{keys.REJECTED}'
  if mode == 'all' or is_owner then
    local removed = redis.call('ZREM', session, ARGV[at])
    if owner and removed == 1 and mode == 'owned' then
      redis.call('SET', name, '{keys.REJECTED}', 'EX', {keys.SESSION_KEYS_TTL_S})
    end
  end
end
return {{1, redis.call('EXISTS', session)}}
"""
CLAIMED_REMOVAL_SCRIPT = READ_CLAIM + ALLOW_RELEASED_CLAIM + CHECK_CLAIM + REMOVAL_SCRIPT

# Makes a request the owner of messages, unless they have an answer. Returns 1 and 1, or 1 and 0 if
# one of them is missing, or if the size of the session has changed.
# KEYS: those of CHECK_CLAIM, if there is a claim; the session; the owner of each message.
# ARGV: those of CHECK_CLAIM; the number of KEYS before the owners, the size of the session or an
# empty text, the score and the new owner of each message, in the order of the owners.
TAKE_OVER_SCRIPT = f"""
local before, size = tonumber(ARGV[3]), ARGV[4]
local session = KEYS[before]
if size ~= '' and redis.call('ZCARD', session) ~= tonumber(size) then return {{1, 0}} end
for at = 5, #ARGV, 2 do
  if redis.call('ZCOUNT', session, ARGV[at], ARGV[at]) == 0 then return {{1, 0}} end
end
for at = 1, #KEYS - before do
  local name = KEYS[before + at]
  if redis.call('GET', name) ~= '{keys.ANSWERED}' then
    redis.call('SET', name, ARGV[4 + 2 * at], 'EX', {keys.SESSION_KEYS_TTL_S})
  end
end
return {{1, 1}}
"""
CLAIMED_TAKE_OVER_SCRIPT = READ_CLAIM + ALLOW_RELEASED_CLAIM + CHECK_CLAIM + TAKE_OVER_SCRIPT

# Stores messages again that another request has taken over and removed. Returns 0, and stores
# nothing, if one of them is missing for another reason: a deletion also deletes the owners.
# KEYS: the session, the owner of each message. ARGV: the score and the member of each message.
RESTORE_SCRIPT = """
local missing = {}
for at = 1, #KEYS - 1 do
  local score = ARGV[2 * at - 1]
  if redis.call('ZCOUNT', KEYS[1], score, score) == 0 then
    if redis.call('EXISTS', KEYS[at + 1]) == 0 then return 0 end
    missing[#missing + 1] = at
  end
end
for _, at in ipairs(missing) do
  redis.call('ZADD', KEYS[1], ARGV[2 * at - 1], ARGV[2 * at])
end
return 1
"""


class OwnedMessages(NamedTuple):
    """Messages and their owner: the id of a request, or ANSWERED if none may remove them."""

    owner: str
    messages: Sequence[Message]


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
        script = CLAIMED_REMOVAL_SCRIPT if self.claim else REMOVAL_SCRIPT
        ids = [member_id((member, 0.0)) for member in self.members]
        arguments: list[str | bytes] = [self.mode, self.request_id, *self.members]
        return _evaluate(script, self.session_id, ids, self.claim, arguments)


def _evaluate(
    script: str,
    session_id: str,
    message_ids: Sequence[str],
    claim: Claim | None,
    arguments: Sequence[str | bytes],
) -> Command:
    """Return the command that runs a script for messages of a session and their owners."""
    names = *(claim.names if claim else ()), keys.session_key(session_id)
    attempt = claim.owner if claim else ("", "")
    owners = [keys.owner_key(session_id, each) for each in message_ids]
    count = len(names) + len(owners)
    return ("EVAL", script, count, *names, *owners, *attempt, len(names), *arguments)


class MessageOwners:
    """Takes messages over, removes and restores them.

    A session without messages is removed from the index.
    """

    def __init__(self, transact: Transact, index: SessionIndex, *, timeout_s: float) -> None:
        self._transact = transact
        self._index = index
        self._timeout_s = timeout_s

    async def take_over(
        self,
        session_id: str,
        owned: Sequence[OwnedMessages],
        claim: Claim | None,
        *,
        session_size: int | None = None,
    ) -> bool:
        """Change the owners of messages; return whether all of them still exist.

        With `session_size`, also return False if messages were added or removed since then.
        """
        script = CLAIMED_TAKE_OVER_SCRIPT if claim else TAKE_OVER_SCRIPT
        pairs = [(message, each.owner) for each in owned for message in each.messages]
        ids = [message.id for message, _ in pairs]
        size = "" if session_size is None else str(session_size)
        words = [word for message, owner in pairs for word in (message.score_text, owner)]
        arguments = size, *words
        names = [keys.owner_key(session_id, each) for each in ids]
        reply, *_ = await self._transact(
            [
                _evaluate(script, session_id, ids, claim, arguments),
                *keys.link_to_session(session_id, *names, now_s=time.time()),
            ]
        )
        if claim is not None and reply == [0]:
            raise superseded(claim.turn_id)
        return bool(reply == [1, 1])

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
