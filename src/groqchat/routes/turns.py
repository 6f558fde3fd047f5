"""GET /chat/{turn_id}/events and POST /chat/{turn_id}/stop: resume or stop a turn on any worker."""

from http import HTTPStatus

from aiohttp import web

from groqchat.errors import Overloaded, ShuttingDown, StorageError, TurnLost, TurnNotFound
from groqchat.http.endpoint import RouteDocs, endpoint
from groqchat.http.event_stream import EVENT_MODELS, STREAM_DESCRIPTION, TURN_ID_HEADER
from groqchat.http.state import Services
from groqchat.models import LastEventId, StopResponse, TurnPath

routes = web.RouteTableDef()

ERRORS = (Overloaded, ShuttingDown, StorageError, TurnLost, TurnNotFound)


@endpoint(
    routes,
    "GET",
    "/api/groq-chat/chat/{turn_id}/events",
    docs=RouteDocs(
        errors=ERRORS,
        stream=STREAM_DESCRIPTION,
        events=EVENT_MODELS,
        no_content="The client already has every event of a finished turn.",
    ),
)
async def resume(
    request: web.Request, services: Services, path: TurnPath, headers: LastEventId
) -> web.StreamResponse:
    """Send the events of a turn after `Last-Event-ID`, then new events as they occur."""
    with services.limiter.following():
        events = await services.turns.follow(path.turn_id, headers.last_event_id)
        if events is None:
            # A browser's EventSource stops reconnecting after this status.
            return web.Response(status=HTTPStatus.NO_CONTENT)
        return await services.event_streams.send(
            request, events, headers={TURN_ID_HEADER: path.turn_id}
        )


@endpoint(routes, "POST", "/api/groq-chat/chat/{turn_id}/stop", docs=RouteDocs(errors=ERRORS))
async def stop(_request: web.Request, services: Services, path: TurnPath) -> StopResponse:
    """Stop a streamed turn; the answer up to this point is stored."""
    # Outside the limiter: a stop frees a slot, so it must not wait for one.
    status = await services.turns.stop(path.turn_id)
    return StopResponse(turn_id=path.turn_id, status=status)
