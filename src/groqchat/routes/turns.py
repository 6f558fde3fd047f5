"""GET /chat/{turn_id}/events and POST /chat/{turn_id}/stop: a running turn, from any worker."""

from aiohttp import web

from groqchat.http.endpoint import endpoint
from groqchat.http.state import event_streams_of, turns_of
from groqchat.models import LastEventId, StopAnswer, TurnPath

routes = web.RouteTableDef()


@endpoint(routes, "GET", "/api/groq-chat/chat/{turn_id}/events")
async def resume(request: web.Request, path: TurnPath, headers: LastEventId) -> web.StreamResponse:
    """Send the events of a turn behind the last one that the client has, then go on live."""
    events = await turns_of(request.app).follow(path.turn_id, headers.last_event_id)
    return await event_streams_of(request.app).send(request, events)


@endpoint(routes, "POST", "/api/groq-chat/chat/{turn_id}/stop")
async def stop(request: web.Request, path: TurnPath) -> StopAnswer:
    """End a turn where it stands; what it has said so far is kept."""
    status = await turns_of(request.app).stop(path.turn_id)
    return StopAnswer(turn_id=path.turn_id, status=status)
