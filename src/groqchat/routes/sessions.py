"""GET /sessions and /sessions/{session_id}: who is there, and what is known of one."""

from dataclasses import asdict

from aiohttp import web

from groqchat.errors import SessionNotFound, StorageError
from groqchat.http.endpoint import Notes, endpoint
from groqchat.http.state import history_of
from groqchat.models import SessionAnswer, SessionPath, SessionsAnswer, SessionsQuery

routes = web.RouteTableDef()

NOTES = Notes(errors=(SessionNotFound, StorageError))


@endpoint(routes, "GET", "/api/groq-chat/sessions", notes=NOTES)
async def list_sessions(request: web.Request, query: SessionsQuery) -> SessionsAnswer:
    """Return a page of the live sessions, by last activity."""
    page = await history_of(request.app).get_all_sessions(
        limit=query.limit,
        after=query.after,
        before=query.before,
        oldest_first=query.order == "asc",
    )
    return SessionsAnswer(
        sessions=page.sessions,
        total_sessions=page.total_sessions,
        has_more=page.cursor is not None,
        first_id=page.sessions[0] if page.sessions else None,
        last_id=page.sessions[-1] if page.sessions else None,
        next=page.cursor,
    )


@endpoint(routes, "GET", "/api/groq-chat/sessions/{session_id}", notes=NOTES)
async def show_session(request: web.Request, path: SessionPath) -> SessionAnswer:
    """Return counts, times and expiry of one session."""
    info = await history_of(request.app).get_session_info(path.session_id)
    if info is None:
        raise SessionNotFound
    return SessionAnswer(**asdict(info))
