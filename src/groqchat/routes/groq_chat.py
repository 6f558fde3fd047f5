"""POST /chat and /simple-chat: answer a user message, as a whole or as a stream."""

import asyncio
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
from groqchat.http.departure import wait_or_leave
from groqchat.http.endpoint import JSON, RouteDocs, endpoint
from groqchat.http.errors import CLIENT_CLOSED_REQUEST, error_from_event
from groqchat.http.event_stream import (
    EVENT_MODELS,
    STREAM_DESCRIPTION,
    TURN_ID_HEADER,
)
from groqchat.http.state import Services
from groqchat.models import ChatHeaders, ChatRequest, ChatResponse
from groqchat.services.turns.idempotency import FollowedTurn
from groqchat.services.turns.turn import Turn, TurnFailed
from groqchat.services.turns.waiters import Waiter

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
    if final is None:
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    name, data = sse.parse_event(final)
    if name == "error":
        raise error_from_event(orjson.loads(data))
    return web.Response(body=data, content_type=JSON)


async def _final_event(
    request: web.Request, services: Services, message: ChatRequest, key: str | None
) -> bytes | None:
    """Return the final event of a turn in a task of its own; obey `on_disconnect`.

    Returns None if the client has disconnected, and the turn continues for other clients.
    """
    if key is None:
        turn = services.chat.start(message)
        return await wait_or_leave(request, turn.final_event(), partial(_leave, services, turn))
    may_cancel = message.on_disconnect == "cancel"
    async with services.idempotency.waiters.waiting(may_cancel=may_cancel) as waiter:
        final = services.idempotency.outcome(key, message, waiter=waiter)
        if message.on_disconnect == "continue":
            return await final
        return await wait_or_leave(request, final, partial(_leave, services, waiter))


async def _stream(
    request: web.Request, services: Services, message: ChatRequest, key: str | None
) -> web.StreamResponse:
    """Send the events of a turn, or its error if it fails before the first text."""
    try:
        if key is None:
            turn = services.chat.start(message)
            await turn.wait_for_text()
            followed = FollowedTurn(turn_id=turn.id, events=turn.follow())
            return await _send(request, services, message, followed, turn)
        may_cancel = message.on_disconnect == "cancel"
        async with services.idempotency.waiters.waiting(may_cancel=may_cancel) as waiter:
            follow = services.idempotency.follow
            followed = await follow(key, message, waiter=waiter, waits_for_text=True)
            return await _send(request, services, message, followed, waiter)
    except TurnFailed as failure:
        response = error_from_event(orjson.loads(failure.data)).error.response()
        response.headers[TURN_ID_HEADER] = failure.turn_id
        return response


async def _send(
    request: web.Request,
    services: Services,
    message: ChatRequest,
    followed: FollowedTurn,
    waits_for: Turn | Waiter,
) -> web.StreamResponse:
    """Send the events of a turn; obey `on_disconnect`."""
    is_disconnected = asyncio.Event()
    sent = await services.event_streams.send(
        request,
        followed.events,
        on_disconnect=is_disconnected.set,
        headers={TURN_ID_HEADER: followed.turn_id},
    )
    if is_disconnected.is_set():
        if message.on_disconnect == "cancel":
            await _leave(services, waits_for)
        elif isinstance(waits_for, Waiter):
            # No other client may cancel this turn.
            waits_for.turn_id = None
    return sent


async def _leave(services: Services, waits_for: Turn | Waiter) -> bool | None:
    """Stop a turn whose client disconnected; with an Idempotency-Key, if nobody else follows.

    Returns whether the turn is stopped, None if the request does not wait for a turn yet.
    """
    if isinstance(waits_for, Turn):
        waits_for.stop("disconnected")
        return True
    try:
        return await services.idempotency.waiters.leave(waits_for)
    except StorageError:
        return False
