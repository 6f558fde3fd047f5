"""GET and DELETE /history/{session_id}: a session's messages."""

from aiohttp import web

from groqchat.errors import StorageError
from groqchat.http.endpoint import Notes, endpoint
from groqchat.http.state import history_of
from groqchat.models import ClearAnswer, HistoryAnswer, HistoryMessage, HistoryQuery, SessionPath
from groqchat.services.redis_chat_service import HistoryPage

routes = web.RouteTableDef()


@endpoint(routes, "GET", "/api/groq-chat/history/{session_id}", notes=Notes(errors=(StorageError,)))
async def get_history(
    request: web.Request, path: SessionPath, query: HistoryQuery
) -> HistoryAnswer:
    """Return a page of a session's messages; an unknown session has none."""
    page = await history_of(request.app).get_session_history(
        path.session_id,
        limit=query.limit,
        after=query.after,
        before=query.before,
        oldest_first=query.order == "asc",
    )
    return _answer(path.session_id, page)


@endpoint(
    routes, "DELETE", "/api/groq-chat/history/{session_id}", notes=Notes(errors=(StorageError,))
)
async def clear_history(request: web.Request, path: SessionPath) -> ClearAnswer:
    """Delete a session's messages; doing so again changes nothing."""
    await history_of(request.app).clear_session(path.session_id)
    return ClearAnswer(message=f"Chat history cleared for session {path.session_id}")


def _answer(session_id: str, page: HistoryPage) -> HistoryAnswer:
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
    return HistoryAnswer(
        session_id=session_id,
        messages=messages,
        message_count=page.message_count,
        last_message_time=page.last_message_time,
        has_more=page.has_more,
        first_id=page.first_id,
        last_id=page.last_id,
    )
