"""POST /chat and /simple-chat: answer a user message, as a whole or as a stream."""

import orjson
from aiohttp import web

from groqchat import sse
from groqchat.errors import (
    CompletionError,
    IdempotencyKeyReused,
    Overloaded,
    ShuttingDown,
    StorageError,
    TurnLost,
)
from groqchat.http.endpoint import JSON, RouteDocs, endpoint
from groqchat.http.errors import error_from_event
from groqchat.http.event_stream import EVENT_MODELS, STREAM_DESCRIPTION, wait_or_stop
from groqchat.http.state import Services
from groqchat.models import ChatHeaders, ChatRequest, ChatResponse
from groqchat.services.turns.turn import Turn

routes = web.RouteTableDef()

ERRORS = (
    CompletionError,
    StorageError,
    Overloaded,
    ShuttingDown,
    IdempotencyKeyReused,
    TurnLost,
)
DOCS = RouteDocs(errors=ERRORS, stream=STREAM_DESCRIPTION, events=EVENT_MODELS)


@endpoint(routes, "POST", "/api/groq-chat/chat", docs=DOCS)
async def chat(
    request: web.Request, services: Services, headers: ChatHeaders, body: ChatRequest
) -> ChatResponse | web.StreamResponse:
    """Answer a user message in a JSON body."""
    return await _answer(request, services, body, headers.idempotency_key)


@endpoint(routes, "POST", "/api/groq-chat/simple-chat", docs=DOCS)
async def simple_chat(
    request: web.Request, services: Services, headers: ChatHeaders, query: ChatRequest
) -> ChatResponse | web.StreamResponse:
    """Answer a user message in the query string."""
    return await _answer(request, services, query, headers.idempotency_key)


async def _answer(
    request: web.Request, services: Services, message: ChatRequest, key: str | None
) -> ChatResponse | web.StreamResponse:
    if message.model is not None and not services.catalog.may_exist(message.model):
        # Checked before a stream begins, because a stream has sent its status already.
        await services.catalog.check(message.model)
    if message.stream:
        return await _stream(request, services, message, key)
    if key is not None:
        final = await services.idempotency.outcome(key, message)
    elif message.on_disconnect == "cancel":
        final = await wait_or_stop(request, services.chat.start(message))
    else:
        return await services.chat.answer(message)
    name, data = sse.parse_event(final)
    if name == "error":
        raise error_from_event(orjson.loads(data))
    return web.Response(body=data, content_type=JSON)


async def _stream(
    request: web.Request, services: Services, message: ChatRequest, key: str | None
) -> web.StreamResponse:
    turn: Turn | None
    if key is None:
        turn = services.chat.start(message)
        events = turn.follow()
    else:
        events, turn = await services.idempotency.follow(key, message)

    def on_disconnect() -> None:
        if turn is not None and message.on_disconnect == "cancel":
            turn.stop("disconnected")

    return await services.event_streams.send(request, events, on_disconnect=on_disconnect)
