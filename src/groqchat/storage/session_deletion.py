"""Deleting a session: its messages, the events of its turns, and what belongs to its keys."""

import logging

from groqchat.errors import StorageError
from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.message_ids import new_message_id

log = logging.getLogger(__name__)


async def delete_session(batcher: CommandBatcher, session_id: str) -> str | None:
    """Delete every key of a session; no effect on an unknown session.

    Returns None, or the highest id of its turns if the workers could not be told: a full Redis
    accepts deletions but no requests. Call `announce` with this id later.
    """
    # Before the deletion: a turn that starts from now on may be a part of the next session.
    last_turn = new_message_id()
    *_, names = await batcher.transact(
        [
            *keys.delete_session(session_id),
            ("ZRANGE", keys.session_keys_key(session_id), 0, -1),
        ]
    )
    # The clock of the worker of a turn may be ahead of the clock of this worker.
    last_turn = max([last_turn, *filter(None, map(keys.turn_id_of, names))])
    is_announced = True
    try:
        # Before the events are deleted: a worker that misses them must find the reason.
        await batcher.transact(keys.request_to_workers(session=session_id, last_turn=last_turn))
    except StorageError as error:
        log.warning("running turns do not notice a deletion yet: %s", error)
        is_announced = False
    if names:
        await batcher.transact(keys.unlink_from_session(session_id, names))
    return None if is_announced else last_turn


async def announce(batcher: CommandBatcher, session_id: str, last_turn: str) -> None:
    """Tell the workers that a session was deleted; delete the events of turns that have ended.

    These turns ran during the deletion, and wrote their events again.
    """
    *_, names = await batcher.transact(
        [
            *keys.request_to_workers(session=session_id, last_turn=last_turn),
            ("ZRANGE", keys.session_keys_key(session_id), 0, -1),
        ]
    )
    turns = [turn for turn in map(keys.turn_id_of, names) if turn and turn <= last_turn]
    await EventLog(batcher).delete(turns)


async def was_deleted(batcher: CommandBatcher, session_id: str, *, since: str) -> bool:
    """Return whether a session was deleted after the id of a turn was created.

    Workers announce a deletion for STOP_REQUESTS_TTL_S at least.
    """
    requests = await EventLog(batcher).recent_requests(keys.MAX_STOP_REQUESTS)
    return any(
        each.session_id == session_id and each.last_turn_id >= since for each in requests.deletions
    )
