"""Every Redis key, and the one TTL rule: a session lives `ttl_s` after its last message."""

from groqchat.storage.batching import Command

SESSION_PREFIX = "chat:session:"
SESSIONS_INDEX = "chat:sessions"
TURN_PREFIX = "chat:turn:"
CLAIM_PREFIX = "chat:claim:"
IDEMPOTENCY_PREFIX = "chat:idempotency:"
STOPS = "chat:stops"

# A running turn's events live on while its worker does, which renews this every third of it.
TURN_LEASE_S = 15
# Events of a turn that is over: time enough to come back from a lost network.
TURN_KEPT_S = 300
# The same where others wait for its outcome under one Idempotency-Key: an answer for as long as a
# client may come back for it, a failure only for those who wait already.
IDEMPOTENCY_TTL_S = 3600
FAILURE_KEPT_S = 1
# Requests to stop are obeyed within a second.
STOPS_TTL_S = 60

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
        # To the microsecond, without the time that repr() takes.
        ("ZADD", SESSIONS_INDEX, f"{int((now_s + ttl_s) * 1_000_000)}e-6", session_id),
    )


def unlist(session_id: str) -> tuple[Command]:
    """Return the removal of a session's entry in the index, its messages left alone."""
    return (("ZREM", SESSIONS_INDEX, session_id),)


def forget(session_id: str) -> tuple[Command, Command]:
    """Return the removal of a session: its messages, its entry in the index."""
    return ("UNLINK", session_key(session_id)), ("ZREM", SESSIONS_INDEX, session_id)


def turn_key(turn_id: str) -> str:
    """Return the key of a turn's stream of events."""
    return TURN_PREFIX + turn_id


def claim_key(turn_id: str) -> str:
    """Return the key that says who runs a turn that several ask for."""
    return CLAIM_PREFIX + turn_id


def idempotency_key(digest: str) -> str:
    """Return the key of what an Idempotency-Key stands for."""
    return IDEMPOTENCY_PREFIX + digest


def keep_turn(turn_id: str, ttl_s: int) -> tuple[Command, Command]:
    """Return what lets a turn's events, and the claim to it, live for another `ttl_s` seconds."""
    return ("EXPIRE", turn_key(turn_id), ttl_s), ("EXPIRE", claim_key(turn_id), ttl_s)
