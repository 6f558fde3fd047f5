"""Deleting a session: its messages, the events of its turns, and what belongs to its keys."""

from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.message_ids import new_message_id

# Deletes every key of a session and asks the workers to delete what they write later, in one step:
# whatever is written is a part of the deletion, or of the next session. The request contains the
# highest id of the session's turns: the clock of the worker of a turn may be ahead of the clock of
# this worker. Replies this id, and whether the workers were told: a full Redis accepts deletions
# but no requests.
# KEYS: messages, session index, names of the other keys, requests to workers, holders of messages,
# the last deletion. ARGV: session id, highest id of a turn by the clock of this worker, maximum
# number and TTL of requests, TTL of the deletion, prefixes of the keys that end with the id of a
# turn.
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
redis.call('UNLINK', KEYS[1], KEYS[3], KEYS[5])
local unlisted = redis.pcall('ZREM', KEYS[2], ARGV[1])
redis.pcall('SET', KEYS[6], last_turn, 'EX', ARGV[5])
local request = redis.pcall('XADD', KEYS[4], 'MAXLEN', '~', ARGV[3], '*',
  'session', ARGV[1], 'last_turn', last_turn)
redis.pcall('EXPIRE', KEYS[4], ARGV[4])
if type(unlisted) == 'table' and unlisted.err then return unlisted end
if type(request) == 'table' and request.err then return {last_turn, 0} end
return {last_turn, 1}
"""


async def delete_session(batcher: CommandBatcher, session_id: str) -> str | None:
    """Delete every key of a session; no effect on an unknown session.

    Returns None, or the highest id of its turns if the workers could not be told. Call `announce`
    with this id later.
    """
    names = (
        keys.session_key(session_id),
        keys.SESSIONS_INDEX,
        keys.session_keys_key(session_id),
        keys.STOP_REQUESTS,
        keys.holders_key(session_id),
        keys.deletion_key(session_id),
    )
    # Before the deletion: a turn that starts from now on may be a part of the next session.
    last_turn = new_message_id()
    limits = keys.MAX_STOP_REQUESTS, keys.STOP_REQUESTS_TTL_S, keys.DELETION_TTL_S
    prefixes = keys.TURN_PREFIX, keys.CLAIM_PREFIX
    (reply,) = await batcher.transact(
        [("EVAL", DELETION_SCRIPT, len(names), *names, session_id, last_turn, *limits, *prefixes)]
    )
    highest, is_announced = reply
    return None if is_announced else highest.decode()


async def announce(batcher: CommandBatcher, session_id: str, last_turn: str) -> None:
    """Tell the workers that a session was deleted; delete the events of turns that have ended.

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

    Known for DELETION_TTL_S after the deletion.
    """
    (last_turn,) = await batcher.transact([("GET", keys.deletion_key(session_id))])
    return last_turn is not None and last_turn.decode() >= since
