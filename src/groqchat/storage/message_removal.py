"""Removing messages from a session, which ends with its last message."""

from collections.abc import Sequence

from groqchat.storage import keys
from groqchat.storage.claims import Claim, Transact, fenced
from groqchat.storage.errors import redis_errors
from groqchat.storage.keys import Command
from groqchat.storage.session_index import SessionIndex


class MessageRemoval:
    """Removes messages; a session without messages is removed from the index."""

    def __init__(self, transact: Transact, index: SessionIndex, *, timeout_s: float) -> None:
        self._transact = transact
        self._index = index
        self._timeout_s = timeout_s

    async def remove(
        self, session_id: str, members: Sequence[bytes], claim: Claim | None = None
    ) -> None:
        """Remove members, unless another attempt than that of a claim owns the turn."""
        key = keys.session_key(session_id)
        commands: list[Command] = [("ZREM", key, *words) for words in keys.split_words(members)]
        commands.append(("EXISTS", key))
        if claim is None:
            *_, exists = await self._transact(commands)
        else:
            (reply,) = await self._transact([claim.fence(commands, lease_s=0)])
            found = fenced(reply)
            exists = found is None or found.replies[-1]
        if not exists:
            await self._transact(keys.remove_from_index(session_id))
            # A concurrent write may have created the session again: then it must be listed.
            async with redis_errors(self._timeout_s):
                await self._index.add_existing([session_id])
