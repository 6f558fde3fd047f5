"""POST /openai/v1/chat/completions and GET /openai/v1/models: Groq's own wire format."""

from aiohttp import web

from groqchat.errors import CompletionError, Overloaded, ShuttingDown
from groqchat.http.endpoint import Notes, endpoint
from groqchat.http.state import catalog_of, compatible_of, event_streams_of
from groqchat.relay_models import (
    GroqErrorAnswer,
    RelayedCompletion,
    RelayedModels,
    RelayHeaders,
    RelayRequest,
)

routes = web.RouteTableDef()

ERRORS = (CompletionError, Overloaded, ShuttingDown)


@endpoint(
    routes,
    "POST",
    "/openai/v1/chat/completions",
    notes=Notes(
        errors=ERRORS,
        error_model=GroqErrorAnswer,
        stream="Groq's own chunks, as they come.",
        passes_errors_on=True,
    ),
)
async def complete(
    request: web.Request, headers: RelayHeaders, body: RelayRequest
) -> RelayedCompletion | web.StreamResponse:
    """Pass a completion on to Groq as it is, within a session where one is named."""
    content = await request.read()
    relayed = await compatible_of(request.app).complete(content, body, headers.session_id)
    turn = relayed.turn
    if turn is None:
        return web.Response(
            body=relayed.body,
            status=relayed.status,
            headers=dict(relayed.headers),
            content_type=relayed.content_type,
        )

    def leave() -> None:
        # Nobody would ever see the rest of it.
        if headers.session_id is None:
            turn.stop("left")

    return await event_streams_of(request.app).send(
        request, turn.follow(), on_leave=leave, headers=relayed.headers
    )


@endpoint(routes, "GET", "/openai/v1/models", notes=Notes(errors=ERRORS))
async def list_models(request: web.Request) -> RelayedModels:
    """Return the models that may be used in Groq's own form."""
    return RelayedModels(data=await catalog_of(request.app).models())
