"""GET /sessions and /sessions/{session_id}: the live sessions, and one of them."""

from dataclasses import asdict

from aiohttp import web

from groqchat.errors import Overloaded, SessionNotFound, StorageError
from groqchat.http.endpoint import RouteDocs, endpoint
from groqchat.http.state import Services
from groqchat.models import SessionPath, SessionResponse, SessionsQuery, SessionsResponse

routes = web.RouteTableDef()

DOCS = RouteDocs(errors=(Overloaded, SessionNotFound, StorageError))


@endpoint(routes, "GET", "/api/groq-chat/sessions", docs=DOCS)
async def list_sessions(
    _request: web.Request, services: Services, query: SessionsQuery
) -> SessionsResponse:
    """Return a page of the live sessions, ordered by last activity."""
    page = await services.history.get_sessions_page(
        limit=query.limit,
        after=query.after,
        before=query.before,
        oldest_first=query.order == "asc",
    )
    return SessionsResponse(
        sessions=page.sessions,
        total_sessions=page.total_sessions,
        has_more=page.cursor is not None,
        first_id=page.sessions[0] if page.sessions else None,
        last_id=page.sessions[-1] if page.sessions else None,
        next=page.cursor,
    )


@endpoint(routes, "GET", "/api/groq-chat/sessions/{session_id}", docs=DOCS)
async def show_session(
    _request: web.Request, services: Services, path: SessionPath
) -> SessionResponse:
    """Return the message count, the first and last time, and the expiry of a session."""
    info = await services.history.get_session_info(path.session_id)
    if info is None:
        raise SessionNotFound
    return SessionResponse(**asdict(info))
