"""POST /chat and /simple-chat: a message in, the model's answer out, whole or as it comes."""

import orjson
from aiohttp import web

from groqchat.errors import (
    CompletionError,
    IdempotencyKeyReused,
    Overloaded,
    ShuttingDown,
    StorageError,
    TurnLost,
)
from groqchat.http.endpoint import JSON, Notes, endpoint
from groqchat.http.errors import error_of_event
from groqchat.http.event_stream import EVENTS, STREAM_NOTE, outcome_while_there
from groqchat.http.state import catalog_of, chat_of, event_streams_of, idempotency_of
from groqchat.models import ChatAnswer, ChatHeaders, ChatRequest
from groqchat.services.turn import Turn
from groqchat.storage.turn_log import parse_frame

routes = web.RouteTableDef()

ERRORS = (
    CompletionError,
    StorageError,
    Overloaded,
    ShuttingDown,
    IdempotencyKeyReused,
    TurnLost,
)
NOTES = Notes(errors=ERRORS, stream=STREAM_NOTE, events=EVENTS)


@endpoint(routes, "POST", "/api/groq-chat/chat", notes=NOTES)
async def chat(
    request: web.Request, headers: ChatHeaders, body: ChatRequest
) -> ChatAnswer | web.StreamResponse:
    """Answer a message given as JSON."""
    return await _answer(request, body, headers.idempotency_key)


@endpoint(routes, "POST", "/api/groq-chat/simple-chat", notes=NOTES)
async def simple_chat(
    request: web.Request, headers: ChatHeaders, query: ChatRequest
) -> ChatAnswer | web.StreamResponse:
    """Answer a message given as query parameters."""
    return await _answer(request, query, headers.idempotency_key)


async def _answer(
    request: web.Request, asked: ChatRequest, key: str | None
) -> ChatAnswer | web.StreamResponse:
    catalog = catalog_of(request.app)
    if asked.model is not None and not catalog.admits(asked.model):
        # Told before a stream begins, which has its status by then.
        await catalog.check(asked.model)
    if asked.stream:
        return await _stream(request, asked, key)
    if key is not None:
        last = await idempotency_of(request.app).outcome(key, asked)
    elif asked.on_disconnect == "cancel":
        last = await outcome_while_there(request, chat_of(request.app).start(asked))
    else:
        return await chat_of(request.app).answer(asked)
    name, data = parse_frame(last)
    if name == "error":
        raise error_of_event(orjson.loads(data))
    return web.Response(body=data, content_type=JSON)


async def _stream(request: web.Request, asked: ChatRequest, key: str | None) -> web.StreamResponse:
    turn: Turn | None
    if key is None:
        turn = chat_of(request.app).start(asked)
        events = turn.follow()
    else:
        events, turn = await idempotency_of(request.app).begin(key, asked)

    def leave() -> None:
        if turn is not None and asked.on_disconnect == "cancel":
            turn.stop("left")

    return await event_streams_of(request.app).send(request, events, on_leave=leave)
