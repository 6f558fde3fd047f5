"""Deleting a session: its messages, the events of its turns, and what belongs to its keys."""

import logging
from collections.abc import Sequence

from groqchat.errors import StorageError
from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.message_ids import new_message_id

log = logging.getLogger(__name__)


async def delete_session(batcher: CommandBatcher, session_id: str) -> None:
    """Delete every key of a session; no effect on an unknown session."""
    # Before the deletion: a turn that starts from now on may be a part of the next session.
    last_turn = new_message_id()
    *_, names = await batcher.transact(
        [
            *keys.delete_session(session_id),
            ("ZRANGE", keys.session_keys_key(session_id), 0, -1),
        ]
    )
    # Before the events are deleted: a worker that misses them must find the reason.
    await _announce(batcher, session_id, last_turn, names)
    if names:
        await batcher.transact(keys.unlink_from_session(session_id, names))


async def was_deleted(batcher: CommandBatcher, session_id: str, *, since: str) -> bool:
    """Return whether a session was deleted after the id of a turn was created.

    Workers announce a deletion for STOP_REQUESTS_TTL_S at least.
    """
    requests = await EventLog(batcher).recent_requests(keys.MAX_STOP_REQUESTS)
    return any(
        each.session_id == session_id and each.last_turn_id >= since for each in requests.deletions
    )


async def _announce(
    batcher: CommandBatcher, session_id: str, last_turn: str, names: Sequence[bytes]
) -> None:
    """Tell the workers that run turns of a session that it was deleted."""
    # The clock of the worker of a turn may be ahead of the clock of this worker.
    turns = filter(None, map(keys.turn_id_of, names))
    request = keys.request_to_workers(session=session_id, last_turn=max([last_turn, *turns]))
    try:
        await batcher.transact(request)
    except StorageError as error:
        # A full Redis rejects this write, but not the deletion.
        log.warning("running turns do not notice a deletion: %s", error)
