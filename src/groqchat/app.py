"""The application: the one place that puts its parts together. Importing it starts nothing."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from aiohttp import web
from redis.asyncio import Redis

from groqchat.errors import StorageError
from groqchat.http import middlewares, state
from groqchat.http.cors import setup_cors
from groqchat.http.errors import event_error
from groqchat.http.event_stream import EventStreams
from groqchat.offline.options import parse_options
from groqchat.offline.server import serve_offline
from groqchat.routes import documents, groq_chat, health, history, models, openai, sessions
from groqchat.routes import turns as turn_routes
from groqchat.services.admission import Admission
from groqchat.services.chat import ChatService
from groqchat.services.compatible_chat import CompatibleChat
from groqchat.services.completions import open_completions
from groqchat.services.conversations import Conversations
from groqchat.services.idempotency import Idempotency
from groqchat.services.model_catalog import ModelCatalog
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.services.turns import Turns
from groqchat.settings import Settings
from groqchat.storage.connection import open_redis
from groqchat.storage.guard import guarded
from groqchat.storage.housekeeping import housekeeping
from groqchat.storage.turn_log import TurnLog

BASE_PATH = "/api/groq-chat"
ROUTE_TABLES = (
    groq_chat.routes,
    turn_routes.routes,
    models.routes,
    openai.routes,
    history.routes,
    sessions.routes,
    health.routes,
    documents.routes,
)

log = logging.getLogger("groqchat")


def create_app(settings: Settings) -> web.Application:
    """Return the application; it connects to nothing before it starts."""
    app = web.Application(middlewares=[middlewares.errors], client_max_size=settings.max_body_bytes)
    state.set_settings(app, settings)
    for table in ROUTE_TABLES:
        app.add_routes(table)
    setup_cors(app, settings.cors_allowed_origins)
    app.cleanup_ctx.append(_resources)
    app.on_shutdown.append(_drain)
    return app


async def _resources(app: web.Application) -> AsyncIterator[None]:
    """Open what requests need, in the order of need; close it the other way round."""
    settings = state.settings_of(app)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(settings))
        history_service = RedisChatService(
            redis, ttl_s=settings.chat_history_ttl, timeout_s=settings.redis_timeout_s
        )
        stack.push_async_callback(history_service.close)
        await _report_redis(settings, redis)
        base_url = await stack.enter_async_context(groq_place(settings))
        completions = await stack.enter_async_context(open_completions(settings, base_url))
        turns = Turns(TurnLog(history_service.batcher), event_error)
        await stack.enter_async_context(turns.published())
        event_streams = EventStreams(
            stall_s=settings.stream_stall_s, limit=settings.max_turns_in_flight
        )
        await stack.enter_async_context(event_streams.looked_after())
        admission = Admission(settings.max_turns_in_flight)
        chat = ChatService(history_service, completions, turns, admission, settings)
        conversations = Conversations(history_service, settings)
        compatible = CompatibleChat(completions, conversations, turns, admission, settings)
        catalog = ModelCatalog(completions, settings.groq_allowed_models)
        await stack.enter_async_context(catalog.kept_fresh())
        services = state.Services(
            history=history_service,
            chat=chat,
            turns=turns,
            idempotency=Idempotency(history_service.batcher, chat, turns),
            catalog=catalog,
            compatible=compatible,
            admission=admission,
            event_streams=event_streams,
        )
        state.set_services(app, services)
        await stack.enter_async_context(housekeeping(redis, settings.redis_timeout_s))
        yield


async def _drain(app: web.Application) -> None:
    """Let turns end while their clients can still be answered."""
    grace_s = state.settings_of(app).shutdown_grace_s
    turns = state.turns_of(app)
    await state.admission_of(app).drain(grace_s, partial(turns.stop_all, "shutdown"))


@asynccontextmanager
async def groq_place(settings: Settings) -> AsyncIterator[str]:
    """Give the URL of Groq's API, starting the stand-in where that is asked for."""
    if settings.is_offline:
        options = parse_options(settings.offline_options)
        async with serve_offline(options) as base_url:
            log.info("[Groq] offline: answers come from a stand-in at %s, not a model", base_url)
            yield base_url
        return
    if settings.groq_api_key is None:
        log.warning("[Groq] WARNING: GROQ_API_KEY is not set; /chat will answer 503")
    else:
        log.info("[Groq] %s, model %s", settings.groq_base_url, settings.groq_default_model)
    yield settings.groq_base_url


async def _report_redis(settings: Settings, redis: Redis) -> None:
    place = settings.redis_place
    try:
        async with guarded(settings.redis_timeout_s):
            await redis.ping()
    except StorageError as error:
        log.warning("[Redis Chat] WARNING: Could not connect to Redis at %s", place)
        log.warning("[Redis Chat] going on without history: %s", error.detail)
        return
    if place.startswith("memory:"):
        log.warning("[Redis Chat] WARNING: memory: nothing outlives this process")
    else:
        log.info("[Redis Chat] Connected to Redis at %s", place)
