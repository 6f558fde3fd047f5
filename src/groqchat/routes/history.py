"""GET and DELETE /history/{session_id}: the messages of a session."""

from contextlib import suppress

from aiohttp import web

from groqchat.errors import Overloaded, StorageError
from groqchat.http.endpoint import RouteDocs, endpoint
from groqchat.http.state import Services
from groqchat.models import (
    ClearResponse,
    HistoryMessage,
    HistoryQuery,
    HistoryResponse,
    SessionPath,
)
from groqchat.storage.message_ids import new_message_id

routes = web.RouteTableDef()

PATH = "/api/groq-chat/history/{session_id}"
DOCS = RouteDocs(errors=(Overloaded, StorageError))


@endpoint(routes, "GET", PATH, docs=DOCS)
async def get_history(
    _request: web.Request, services: Services, path: SessionPath, query: HistoryQuery
) -> HistoryResponse:
    """Return a page of a session's messages; the page of an unknown session is empty."""
    page = await services.history.get_history_page(
        path.session_id,
        limit=query.limit,
        after=query.after,
        before=query.before,
        oldest_first=query.order == "asc",
    )
    messages = [
        HistoryMessage(
            id=message.id,
            role=message.role,
            content=message.content,
            model=message.model,
            timestamp=message.timestamp,
            tokens=message.tokens,
            finish_reason=message.finish_reason,
            status=message.status,
            extra=message.extra,
        )
        for message in page.messages
    ]
    return HistoryResponse(
        session_id=path.session_id,
        messages=messages,
        message_count=page.message_count,
        last_message_time=page.last_message_time,
        has_more=page.has_more,
        first_id=page.first_id,
        last_id=page.last_id,
    )


@endpoint(routes, "DELETE", PATH, docs=DOCS)
async def clear_history(
    _request: web.Request, services: Services, path: SessionPath
) -> ClearResponse:
    """Delete a session with the events of its turns; idempotent."""
    last_turn_id = new_message_id()
    await services.history.clear_session(path.session_id)
    with suppress(StorageError):
        # Otherwise, this worker learns it as the others do.
        await services.turns.delete_session(path.session_id, last_turn_id=last_turn_id)
    return ClearResponse(message=f"Chat history cleared for session {path.session_id}")
