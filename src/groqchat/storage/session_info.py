"""Count, times and expiry of one session."""

import time
from dataclasses import dataclass

from groqchat.storage import keys
from groqchat.storage.claims import Transact
from groqchat.storage.keys import Command
from groqchat.storage.message_ids import iso_time
from groqchat.storage.messages import member_micros, scored_members


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """Counts and times of a session; times in ISO 8601, None if the session never expires."""

    session_id: str
    message_count: int
    first_message_time: str
    last_message_time: str
    expires_at: str | None
    ttl_seconds: int | None


async def read_session_info(transact: Transact, session_id: str) -> SessionInfo | None:
    """Return counts and times of a session, or None if it does not exist."""
    key = keys.session_key(session_id)
    commands: list[Command] = [
        ("ZCARD", key),
        ("ZRANGE", key, 0, 0, "WITHSCORES"),
        ("ZRANGE", key, -1, -1, "WITHSCORES"),
        ("PTTL", key),
    ]
    count, first, last, pttl_ms = await transact(commands)
    if not count:
        return None
    never_expires = pttl_ms < 0
    expires_micros = time.time_ns() // 1000 + pttl_ms * 1000
    return SessionInfo(
        session_id=session_id,
        message_count=count,
        first_message_time=iso_time(member_micros(scored_members(first)[0])),
        last_message_time=iso_time(member_micros(scored_members(last)[0])),
        expires_at=None if never_expires else iso_time(expires_micros),
        ttl_seconds=None if never_expires else round(pttl_ms / 1000),
    )
