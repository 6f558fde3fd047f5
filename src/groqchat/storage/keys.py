"""Every Redis key, and the one TTL rule: a session expires `ttl_s` after its last message."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

from groqchat.errors import InvalidField
from groqchat.fields import PATTERN_RULES, SESSION_ID, SESSION_ID_PATTERN

Command: TypeAlias = tuple[str | bytes | int | float, ...]

SESSION_PREFIX = "chat:session:"
SESSIONS_INDEX = "chat:sessions"
TURN_PREFIX = "chat:turn:"
CLAIM_PREFIX = "chat:claim:"
IDEMPOTENCY_PREFIX = "chat:idempotency:"
REQUESTS_PREFIX = "chat:requests:"
ATTEMPTS_PREFIX = "chat:attempts:"
WORKER_PREFIX = "chat:worker:"
STOP_REQUESTS = "chat:stops"
WRITE_PROBE = "chat:probe"

# TTL of the events of a running turn. Followers notice the death of its worker by the end of the
# lease, so it is short. The worker renews it twice a second: a pause of its event loop, for example
# for a garbage collection, is much shorter than the remaining lease.
TURN_LEASE_S = 4
LEASE_RENEWAL_S = 0.5
# The requests of a worker that has died count for this time. A worker that pauses for longer does
# not count as dead at once; see DEAD_CHECKS.
WORKER_LEASE_S = 8
# Retention of a finished turn's events: enough for a client to reconnect after a network failure.
TURN_RETENTION_S = 300
# Retention of a turn with an Idempotency-Key: clients may repeat the request for an hour.
IDEMPOTENCY_TTL_S = 3600
# Workers read the requests to stop turns within a second.
STOP_REQUESTS_TTL_S = 60
# A paused worker misses fewer requests than this, even if a client deletes all sessions.
MAX_STOP_REQUESTS = 100_000
# A command may be on its way for as long as TCP sends it again, about a quarter of an hour. Until
# then, the deletion of its session must be known.
DELETION_TTL_S = 1000
# Keys, and the starts of keys, that the Redis user must be permitted to use.
PREFIXES = (
    SESSION_PREFIX,
    f"{{{SESSION_PREFIX}",
    SESSIONS_INDEX,
    TURN_PREFIX,
    CLAIM_PREFIX,
    IDEMPOTENCY_PREFIX,
    REQUESTS_PREFIX,
    ATTEMPTS_PREFIX,
    WORKER_PREFIX,
    STOP_REQUESTS,
)
# Executes every command of the service that its Redis user may not be permitted to use.
# KEYS: a key that does not exist, and others that are only read.
PERMISSION_SCRIPT = """
for _, name in ipairs(KEYS) do redis.call('EXISTS', name) end
local key = KEYS[1]
for _, command in ipairs({'GET', 'TTL', 'PTTL', 'SCARD', 'SMEMBERS', 'ZCARD'}) do
  redis.call(command, key)
end
redis.call('ZCOUNT', key, 0, 0)
redis.call('ZRANGE', key, 0, 0)
redis.call('ZREM', key, '')
redis.call('ZREMRANGEBYSCORE', key, 0, 0)
redis.call('ZSCORE', key, '')
redis.call('XRANGE', key, '-', '+', 'COUNT', 1)
redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
redis.call('INCR', key)
redis.call('UNLINK', key)
redis.call('SADD', key, '')
redis.call('SREM', key, '')
redis.call('XADD', key, '*', '', '')
redis.call('UNLINK', key)
"""
# The readiness check writes this key again long before it expires, if it is used at all.
WRITE_PROBE_TTL_S = 60
# A session knows its keys for the time of the longest turn (the maximum of GROQ_TIMEOUT_S), and
# then for the retention of its events.
SESSION_KEYS_TTL_S = 3600 + IDEMPOTENCY_TTL_S

# An even number, so that a score and its member stay in one command.
MAX_WORDS = 4000

# The value of a claim whose attempt has ended: the next request can claim the turn, and the attempt
# can no longer write.
RELEASED = "released"

# The score of a session whose key has no TTL because another program wrote it.
NEVER_EXPIRES = float("inf")


def write_probe() -> tuple[Command, ...]:
    """Return commands which Redis rejects if it accepts no writes, or not all of this service."""
    return (
        ("SET", WRITE_PROBE, "", "EX", WRITE_PROBE_TTL_S),
        ("UNLINK", WRITE_PROBE),
        ("EVAL", PERMISSION_SCRIPT, 1 + len(PREFIXES), WRITE_PROBE, *PREFIXES),
        ("ZADD", WRITE_PROBE, 0, ""),
        ("EXPIRE", WRITE_PROBE, WRITE_PROBE_TTL_S),
        ("UNLINK", WRITE_PROBE),
    )


def split_words(words: Sequence[str | bytes]) -> Iterator[Sequence[str | bytes]]:
    """Yield the arguments of several commands: a script passes about 8000 to one command."""
    for begin in range(0, len(words), MAX_WORDS):
        yield words[begin : begin + MAX_WORDS]


def checked_key(session_id: str) -> str:
    """Return the key of a session; raise InvalidField for an id that the API rejects."""
    try:
        key = _checked_key(session_id)
    except TypeError:
        key = None
    if key is None:
        rule = PATTERN_RULES[SESSION_ID_PATTERN]
        raise InvalidField(message=f"session_id: {rule}", param="session_id")
    return key


# Each turn checks its session id twice.
@lru_cache(maxsize=4096)
def _checked_key(session_id: str) -> str | None:
    return session_key(session_id) if SESSION_ID.fullmatch(session_id) else None


def session_key(session_id: str) -> str:
    """Return the key of a session's sorted set of messages."""
    return SESSION_PREFIX + session_id


def session_id_of(key: bytes) -> str:
    """Return the session id in a session's key; invalid UTF-8 becomes U+FFFD."""
    return key[len(SESSION_PREFIX) :].decode(errors="replace")


def index_score(pttl_ms: int, now_s: float) -> float:
    """Return when a session expires, in Unix seconds, from the PTTL of its key."""
    return NEVER_EXPIRES if pttl_ms < 0 else now_s + pttl_ms / 1000


def touch_session(session_id: str, *, ttl_s: int, now_s: float) -> tuple[Command, Command]:
    """Return the commands that renew a session's TTL and its entry in the index."""
    return (
        ("EXPIRE", session_key(session_id), ttl_s),
        # Exact to the microsecond, and faster than repr().
        ("ZADD", SESSIONS_INDEX, f"{int((now_s + ttl_s) * 1_000_000)}e-6", session_id),
    )


def remove_from_index(session_id: str) -> tuple[Command]:
    """Return the command that removes a session from the index but not its messages."""
    return (("ZREM", SESSIONS_INDEX, session_id),)


def session_keys_key(session_id: str) -> str:
    """Return the key of the set that names the other keys of a session.

    The braces are a hash tag: in a cluster, the set is in the slot of the session.
    """
    return f"{{{session_key(session_id)}}}:keys"


def deletion_key(session_id: str) -> str:
    """Return the key of the highest turn id that belongs to the last deletion of a session."""
    return f"{{{session_key(session_id)}}}:deleted"


def note_deletion(session_id: str, last_turn: str) -> Command:
    """Return the command that records the deletion of a session for late writes."""
    return ("SET", deletion_key(session_id), last_turn, "EX", DELETION_TTL_S)


def retained_key(session_id: str, message_id: str) -> str:
    """Return the key that exists if a request contains a message that another one has stored."""
    return f"{{{session_key(session_id)}}}:retained:{message_id}"


def link_to_session(session_id: str, *names: str, now_s: float) -> tuple[Command, Command, Command]:
    """Return the commands that make keys a part of a session, to be deleted with it."""
    own = session_keys_key(session_id)
    score = int(now_s) + SESSION_KEYS_TTL_S
    return (
        ("ZREMRANGEBYSCORE", own, "-inf", int(now_s)),
        ("ZADD", own, *(part for name in names for part in (score, name))),
        ("EXPIRE", own, SESSION_KEYS_TTL_S),
    )


def unlink_from_session(session_id: str, names: Sequence[bytes]) -> tuple[Command, Command]:
    """Return the commands that delete keys which are a part of a session."""
    return ("UNLINK", *names), ("ZREM", session_keys_key(session_id), *names)


def turn_key(turn_id: str) -> str:
    """Return the key of a turn's event log."""
    return TURN_PREFIX + turn_id


def turn_id_of(key: bytes) -> str | None:
    """Return the turn id in the key of an event log; None if it is another key."""
    name = key.decode(errors="replace")
    return name[len(TURN_PREFIX) :] if name.startswith(TURN_PREFIX) else None


def claim_key(turn_id: str) -> str:
    """Return the key that names the request that runs a turn with an Idempotency-Key."""
    return CLAIM_PREFIX + turn_id


def idempotency_key(digest: str) -> str:
    """Return the key of the record of an Idempotency-Key."""
    return IDEMPOTENCY_PREFIX + digest


def requests_key(turn_id: str) -> str:
    """Return the key of the set of the requests that wait for a turn with an Idempotency-Key."""
    return REQUESTS_PREFIX + turn_id


def attempts_key(turn_id: str) -> str:
    """Return the key of the number of attempts at a turn."""
    return ATTEMPTS_PREFIX + turn_id


def keyed_turn_keys(turn_id: str) -> tuple[str, str, str]:
    """Return the keys that only a turn with an Idempotency-Key has."""
    return claim_key(turn_id), requests_key(turn_id), attempts_key(turn_id)


def add_request(turn_id: str, request: str) -> tuple[Command, Command]:
    """Return the commands that count a request that waits for a turn."""
    name = requests_key(turn_id)
    return ("SADD", name, request), ("EXPIRE", name, IDEMPOTENCY_TTL_S)


def remove_request(turn_id: str, request: str) -> tuple[Command, Command]:
    """Return the commands that remove a request, and reply how many still wait."""
    name = requests_key(turn_id)
    return ("SREM", name, request), ("SCARD", name)


def list_requests(turn_id: str) -> tuple[Command]:
    """Return the command that replies the requests that wait for a turn."""
    return (("SMEMBERS", requests_key(turn_id)),)


def hold_lease(worker: str) -> Command:
    """Return the command that renews the lease of a worker for the requests that wait on it."""
    return ("SET", WORKER_PREFIX + worker, "", "EX", WORKER_LEASE_S)


def has_lease(worker: str) -> Command:
    """Return the command that replies whether a worker has a lease."""
    return ("EXISTS", WORKER_PREFIX + worker)


def delete_attempt(turn_id: str, attempt: int) -> tuple[Command, ...]:
    """Return the commands that release the claim of an attempt that has not started."""
    names = (claim_key(turn_id), *(() if attempt else (attempts_key(turn_id),)))
    return tuple(("UNLINK", name) for name in names)


def end_repeatable_turn(turn_id: str, ttl_s: int) -> tuple[Command, Command]:
    """Return the commands that retain a turn's events and let another request run it again."""
    return ("EXPIRE", turn_key(turn_id), ttl_s), ("SET", claim_key(turn_id), RELEASED, "EX", ttl_s)


def delete_turn(turn_id: str) -> tuple[Command, ...]:
    """Return the commands that delete the events of a turn and its claim."""
    # One for each key, because a cluster may have them in different slots.
    return tuple(("UNLINK", name) for name in (turn_key(turn_id), *keyed_turn_keys(turn_id)))


def request_to_workers(**fields: str) -> tuple[Command, Command]:
    """Return the commands that add an entry to the requests that every worker reads."""
    parts = [part for item in fields.items() for part in item]
    return (
        ("XADD", STOP_REQUESTS, "MAXLEN", "~", MAX_STOP_REQUESTS, "*", *parts),
        ("EXPIRE", STOP_REQUESTS, STOP_REQUESTS_TTL_S),
    )


def touch_turn(turn_id: str, ttl_s: int) -> tuple[Command, Command]:
    """Return the commands that renew the TTL of a turn's events and of its claim."""
    return ("EXPIRE", turn_key(turn_id), ttl_s), ("EXPIRE", claim_key(turn_id), ttl_s)
