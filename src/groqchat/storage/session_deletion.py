"""Deleting a session: its messages, the events of its turns, and what belongs to its keys."""

from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.message_ids import new_message_id

# Deletes every key of a session, and asks the workers to delete what they write later. Redis
# executes this in one step: what is written before is deleted, and what is written after belongs to
# the next session, or is deleted by its worker. The request contains the highest turn id of the
# session, because the clock of another worker may be ahead. Returns this id, and whether the
# workers were notified.
# KEYS: messages, session index, names of the other keys, requests to workers, the last deletion.
# ARGV: session id, highest turn id by the clock of this worker, maximum number and TTL of
# requests, TTL of the deletion, prefixes of event logs and claims, whose names end with a turn id.
DELETION_SCRIPT = """
local names, last_turn = redis.call('ZRANGE', KEYS[3], 0, -1), ARGV[2]
for _, name in ipairs(names) do
  for at = 6, #ARGV do
    local size = string.len(ARGV[at])
    local turn = string.sub(name, size + 1)
    if string.sub(name, 1, size) == ARGV[at] and turn > last_turn then last_turn = turn end
  end
  redis.call('UNLINK', name)
end
redis.call('UNLINK', KEYS[1], KEYS[3])
local unlisted = redis.pcall('ZREM', KEYS[2], ARGV[1])
redis.pcall('SET', KEYS[5], last_turn, 'EX', ARGV[5])
local request = redis.pcall('XADD', KEYS[4], 'MAXLEN', '~', ARGV[3], '*',
  'session', ARGV[1], 'last_turn', last_turn)
redis.pcall('EXPIRE', KEYS[4], ARGV[4])
if type(unlisted) == 'table' and unlisted.err then return unlisted end
if type(request) == 'table' and request.err then return {last_turn, 0} end
return {last_turn, 1}
"""


async def delete_session(batcher: CommandBatcher, session_id: str) -> str | None:
    """Delete every key of a session. Of an unknown session, only the deletion is recorded.

    Returns None, or the highest turn id if the workers could not be notified. Call `announce` with
    this id later.
    """
    names = (
        keys.session_key(session_id),
        keys.SESSIONS_INDEX,
        keys.session_keys_key(session_id),
        keys.STOP_REQUESTS,
        keys.deletion_key(session_id),
    )
    # Created before the deletion: a turn that starts later may belong to the next session.
    last_turn = new_message_id()
    limits = keys.MAX_STOP_REQUESTS, keys.STOP_REQUESTS_TTL_S, keys.DELETION_TTL_S
    prefixes = keys.TURN_PREFIX, keys.CLAIM_PREFIX
    (reply,) = await batcher.transact(
        [("EVAL", DELETION_SCRIPT, len(names), *names, session_id, last_turn, *limits, *prefixes)]
    )
    highest, is_announced = reply
    return None if is_announced else highest.decode()


async def announce(batcher: CommandBatcher, session_id: str, last_turn: str) -> None:
    """Notify the workers of a deletion, and delete the events of all turns up to `last_turn`.

    These turns ran during the deletion, and wrote their events again.
    """
    *_, names = await batcher.transact(
        [
            *keys.request_to_workers(session=session_id, last_turn=last_turn),
            keys.note_deletion(session_id, last_turn),
            ("ZRANGE", keys.session_keys_key(session_id), 0, -1),
        ]
    )
    turns = [turn for turn in map(keys.turn_id_of, names) if turn and turn <= last_turn]
    await EventLog(batcher).delete(turns)


async def was_deleted(batcher: CommandBatcher, session_id: str, *, since: str) -> bool:
    """Return whether a session was deleted after the id of a turn was created.

    Redis records a deletion for DELETION_TTL_S.
    """
    (last_turn,) = await batcher.transact([("GET", keys.deletion_key(session_id))])
    return last_turn is not None and last_turn.decode() >= since
