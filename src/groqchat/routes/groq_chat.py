"""POST /chat and /simple-chat: answer a user message, as a whole or as a stream."""

import asyncio
from contextlib import suppress
from functools import partial

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
from groqchat.http.event_stream import (
    EVENT_MODELS,
    STREAM_DESCRIPTION,
    TURN_ID_HEADER,
    wait_or_leave,
)
from groqchat.http.state import Services
from groqchat.models import ChatHeaders, ChatRequest, ChatResponse
from groqchat.services.turns.turn import Turn, TurnFailed

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
        # Checked before a turn begins, because a turn stores the user message.
        with services.limiter:
            await services.catalog.check(message.model)
    if message.stream:
        with services.limiter.following():
            return await _stream(request, services, message, key)
    if key is None and message.on_disconnect == "continue":
        return await services.chat.answer(message)
    with services.limiter.following():
        final = await _final_event(request, services, message, key)
    name, data = sse.parse_event(final)
    if name == "error":
        raise error_from_event(orjson.loads(data))
    return web.Response(body=data, content_type=JSON)


async def _final_event(
    request: web.Request, services: Services, message: ChatRequest, key: str | None
) -> bytes:
    """Return the final event of a turn in a task of its own; obey `on_disconnect`."""
    if key is None:
        turn = services.chat.start(message)
        return await wait_or_leave(request, turn.final_event(), partial(_leave, services, turn))
    final = services.idempotency.outcome(key, message)
    if message.on_disconnect == "continue":
        return await final
    return await wait_or_leave(request, final, partial(_leave, services, key))


async def _stream(
    request: web.Request, services: Services, message: ChatRequest, key: str | None
) -> web.StreamResponse:
    """Send the events of a turn, or its error if it fails before the first text."""
    turn: Turn | None = None
    try:
        if key is None:
            turn = services.chat.start(message)
            await turn.wait_for_text()
            turn_id, events = turn.id, turn.follow()
        else:
            followed = await services.idempotency.follow(key, message, waits_for_text=True)
            turn_id, events = followed.turn_id, followed.events
    except TurnFailed as failure:
        response = error_from_event(orjson.loads(failure.data)).error.response()
        response.headers[TURN_ID_HEADER] = failure.turn_id
        return response
    is_disconnected = asyncio.Event()
    sent = await services.event_streams.send(
        request, events, on_disconnect=is_disconnected.set, headers={TURN_ID_HEADER: turn_id}
    )
    if is_disconnected.is_set() and message.on_disconnect == "cancel":
        await _leave(services, turn or key)
    return sent


async def _leave(services: Services, followed: Turn | str | None) -> None:
    """Stop a turn whose client disconnected; with an Idempotency-Key, if nobody else follows."""
    if isinstance(followed, Turn):
        followed.stop("disconnected")
    elif followed is not None:
        with suppress(StorageError):
            await services.idempotency.leave(followed)
