"""GET /chat/{turn_id}/events and POST /chat/{turn_id}/stop: a running turn, from any worker."""

from http import HTTPStatus

from aiohttp import web

from groqchat.errors import Overloaded, StorageError, TurnLost, TurnNotFound
from groqchat.http.endpoint import Notes, endpoint
from groqchat.http.event_stream import EVENTS, STREAM_NOTE
from groqchat.http.state import event_streams_of, turns_of
from groqchat.models import LastEventId, StopAnswer, TurnPath

routes = web.RouteTableDef()

ERRORS = (Overloaded, StorageError, TurnLost, TurnNotFound)


@endpoint(
    routes,
    "GET",
    "/api/groq-chat/chat/{turn_id}/events",
    notes=Notes(
        errors=ERRORS,
        stream=STREAM_NOTE,
        events=EVENTS,
        no_content="The client has all of a turn that is over.",
    ),
)
async def resume(request: web.Request, path: TurnPath, headers: LastEventId) -> web.StreamResponse:
    """Send the events of a turn behind the last one that the client has, then go on live."""
    streams = event_streams_of(request.app)
    streams.check()
    events = await turns_of(request.app).follow(path.turn_id, headers.last_event_id)
    if events is None:
        # By this a browser's EventSource knows that there is nothing to come back for.
        return web.Response(status=HTTPStatus.NO_CONTENT)
    return await streams.send(request, events)


@endpoint(routes, "POST", "/api/groq-chat/chat/{turn_id}/stop", notes=Notes(errors=ERRORS))
async def stop(request: web.Request, path: TurnPath) -> StopAnswer:
    """End a turn where it stands; what it has said so far is kept."""
    status = await turns_of(request.app).stop(path.turn_id)
    return StopAnswer(turn_id=path.turn_id, status=status)
