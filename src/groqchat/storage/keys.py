"""Every Redis key, and the one TTL rule: a session lives `ttl_s` after its last message."""

from groqchat.storage.batching import Command

SESSION_PREFIX = "chat:session:"
SESSIONS_INDEX = "chat:sessions"

# The score of a session whose key has no TTL, as another program may have left it.
NEVER_EXPIRES = float("inf")


def session_key(session_id: str) -> str:
    """Return the key of a session's sorted set of messages."""
    return SESSION_PREFIX + session_id


def session_id_of(key: bytes) -> str:
    """Return the session id in a session's key; undecodable bytes become U+FFFD."""
    return key[len(SESSION_PREFIX) :].decode(errors="replace")


def index_score(pttl_ms: int, now_s: float) -> float:
    """Return when a session expires, in Unix seconds, from what PTTL answered for its key."""
    return NEVER_EXPIRES if pttl_ms < 0 else now_s + pttl_ms / 1000


def keep_alive(session_id: str, *, ttl_s: int, now_s: float) -> tuple[Command, Command]:
    """Return what lets a session live for another `ttl_s` seconds and be listed."""
    return (
        ("EXPIRE", session_key(session_id), ttl_s),
        ("ZADD", SESSIONS_INDEX, repr(now_s + ttl_s), session_id),
    )


def unlist(session_id: str) -> tuple[Command]:
    """Return the removal of a session's entry in the index, its messages left alone."""
    return (("ZREM", SESSIONS_INDEX, session_id),)


def forget(session_id: str) -> tuple[Command, Command]:
    """Return the removal of a session: its messages, its entry in the index."""
    return ("UNLINK", session_key(session_id)), ("ZREM", SESSIONS_INDEX, session_id)
