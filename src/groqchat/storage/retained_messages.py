"""Retained messages: those that a rejected request leaves, because other requests contain them.

A request that Groq rejects removes the messages that it has stored. Another request may contain
some of them, for example because its client has sent everything again. It retains them first.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

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

# Removes messages. Returns 1 and whether the session still exists.
# KEYS: those of CHECK_CLAIM, if there is a claim; the session; with `leaves_retained`, a key for
# each message, which exists if the message is retained.
# ARGV: those of CHECK_CLAIM; the number of KEYS before these; the score of a message that must
# exist, or an empty text; the members in their order.
REMOVAL_SCRIPT = """
local before, score = tonumber(ARGV[3]), ARGV[4]
if score ~= '' and redis.call('ZCOUNT', KEYS[before], score, score) == 0 then return {1, 0} end
for at = 5, #ARGV do
  local name = KEYS[before + at - 4]
  if not name or redis.call('EXISTS', name) == 0 then
    redis.call('ZREM', KEYS[before], ARGV[at])
  end
end
return {1, redis.call('EXISTS', KEYS[before])}
"""
CLAIMED_REMOVAL_SCRIPT = READ_CLAIM + ALLOW_RELEASED_CLAIM + CHECK_CLAIM + REMOVAL_SCRIPT

# Retains messages. Returns 1 and 1, or 1 and 0 without an effect if one of them does not exist.
# KEYS: those of CHECK_CLAIM, if there is a claim; the session; the key of each message.
# ARGV: those of CHECK_CLAIM; the number of KEYS before these; the score of each message.
RETAIN_SCRIPT = f"""
local before = tonumber(ARGV[3])
for at = 4, #ARGV do
  if redis.call('ZCOUNT', KEYS[before], ARGV[at], ARGV[at]) == 0 then return {{1, 0}} end
end
for at = before + 1, #KEYS do
  redis.call('SET', KEYS[at], '', 'EX', {keys.SESSION_KEYS_TTL_S})
end
return {{1, 1}}
"""
CLAIMED_RETAIN_SCRIPT = READ_CLAIM + ALLOW_RELEASED_CLAIM + CHECK_CLAIM + RETAIN_SCRIPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Members to remove from a session, unless an attempt other than that of `claim` owns the turn.

    With `leaves_retained`, retained messages are not removed. With `replaced_by`, none is removed
    unless this message is stored.
    """

    session_id: str
    members: tuple[bytes, ...]
    claim: Claim | None = None
    leaves_retained: bool = False
    replaced_by: Message | None = None

    def command(self) -> Command:
        """Return the command that removes the members.

        Redis returns [0] if another attempt owns the turn, otherwise [1, exists].
        """
        script = CLAIMED_REMOVAL_SCRIPT if self.claim else REMOVAL_SCRIPT
        members = self.members if self.leaves_retained else ()
        ids = [member_id((member, 0.0)) for member in members]
        score = self.replaced_by.score_text if self.replaced_by else ""
        return _evaluate(script, self.session_id, ids, self.claim, [score, *self.members])


def replacement(
    session_id: str, answer: Message, incomplete: Sequence[Message], claim: Claim | None
) -> list[Command]:
    """Return the command that removes incomplete answers if another one is stored instead."""
    removal = Removal(
        session_id=session_id,
        members=tuple(encode_member(message) for message in incomplete),
        claim=claim,
        leaves_retained=True,
        replaced_by=answer,
    )
    return [removal.command()]


def _evaluate(
    script: str,
    session_id: str,
    message_ids: Sequence[str],
    claim: Claim | None,
    arguments: Sequence[str | bytes],
) -> Command:
    """Return the command that runs a script for messages of a session."""
    names = *(claim.names if claim else ()), keys.session_key(session_id)
    attempt = claim.owner if claim else ("", "")
    retained = [keys.retained_key(session_id, each) for each in message_ids]
    count = len(names) + len(retained)
    return ("EVAL", script, count, *names, *retained, *attempt, len(names), *arguments)


class RetainedMessages:
    """Retains messages of other requests, and removes those of rejected ones.

    A session without messages is removed from the index.
    """

    def __init__(self, transact: Transact, index: SessionIndex, *, timeout_s: float) -> None:
        self._transact = transact
        self._index = index
        self._timeout_s = timeout_s

    async def retain(
        self, session_id: str, messages: Sequence[Message], claim: Claim | None
    ) -> bool:
        """Retain messages, and return True, if all of them still exist."""
        script = CLAIMED_RETAIN_SCRIPT if claim else RETAIN_SCRIPT
        ids = [message.id for message in messages]
        scores = [message.score_text for message in messages]
        names = [keys.retained_key(session_id, each) for each in ids]
        reply, *_ = await self._transact(
            [
                _evaluate(script, session_id, ids, claim, scores),
                *keys.link_to_session(session_id, *names, now_s=time.time()),
            ]
        )
        if claim is not None and reply == [0]:
            raise superseded(claim.turn_id)
        return bool(reply == [1, 1])

    async def remove(self, removal: Removal) -> None:
        """Remove messages in one step."""
        (reply,) = await self._transact([removal.command()])
        if reply == [1, 0]:
            await self._transact(keys.remove_from_index(removal.session_id))
            # A concurrent write may have created the session again: then it must be listed.
            async with redis_errors(self._timeout_s):
                await self._index.add_existing([removal.session_id])
