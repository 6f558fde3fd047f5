"""The application: the only place that wires its parts. Importing it starts nothing."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web
from redis.asyncio import Redis

from groqchat.errors import StorageError
from groqchat.http import middlewares
from groqchat.http.cors import setup_cors
from groqchat.http.documentation import DOCUMENTATION, Documentation
from groqchat.http.errors import error_event_data
from groqchat.http.event_stream import EventStreams
from groqchat.http.hosts import AllowedHosts
from groqchat.http.origins import AllowedOrigins
from groqchat.http.proxies import PROXIES, Proxies
from groqchat.http.state import SERVICES, SETTINGS, Services
from groqchat.offline.options import parse_options
from groqchat.offline.server import serve_mock_groq
from groqchat.routes import docs, groq_chat, health, history, models, openai, sessions, turns
from groqchat.services.groq import aiohttp_internals
from groqchat.services.groq.client import GroqClient, open_groq_client
from groqchat.services.groq.model_catalog import ModelCatalog
from groqchat.services.groq.redaction import masking
from groqchat.services.openai.conversations import Conversations
from groqchat.services.openai.keyed import KeyedCompletions
from groqchat.services.openai.proxy import OpenAIProxy
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.idempotency import IdempotencyKeys
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.settings import Settings
from groqchat.storage import redis_internals
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.connection import open_redis
from groqchat.storage.errors import redis_errors
from groqchat.storage.event_log import EventLog
from groqchat.storage.index_pruner import prune_index
from groqchat.storage.write_probe import OK, WriteProbe

BASE_PATH = "/api/groq-chat"
ROUTE_TABLES = (
    groq_chat.routes,
    turns.routes,
    models.routes,
    openai.routes,
    history.routes,
    sessions.routes,
    health.routes,
    docs.routes,
)

log = logging.getLogger("groqchat")


def create_app(settings: Settings) -> web.Application:
    """Return the application; it opens connections only when it starts."""
    proxies = Proxies(settings.trusted_proxies, settings.root_path)
    hosts = AllowedHosts(settings)
    origins = AllowedOrigins(settings.cors_allowed_origins, proxies)
    app = web.Application(
        middlewares=[middlewares.errors(hosts, origins)], client_max_size=settings.max_body_bytes
    )
    app[SETTINGS] = settings
    app[PROXIES] = proxies
    app[DOCUMENTATION] = Documentation()
    for table in ROUTE_TABLES:
        app.add_routes(table)
        if settings.root_path:
            app.add_routes(_below(settings.root_path, table))
    setup_cors(app, settings.cors_allowed_origins, origins)
    app.cleanup_ctx.append(_open_services)
    app.on_shutdown.append(_drain)
    return app


def _below(root_path: str, table: web.RouteTableDef) -> Iterator[web.RouteDef]:
    """Yield the routes for a proxy that does not remove the prefix; `/` without its slash too."""
    for route in table:
        if isinstance(route, web.RouteDef):
            paths = {root_path, f"{root_path}/"} if route.path == "/" else {root_path + route.path}
            for path in paths:
                yield web.RouteDef(route.method, path, route.handler, route.kwargs)


async def _open_services(app: web.Application) -> AsyncIterator[None]:
    """Open the services, each after those that it uses; close them in reverse order."""
    settings = app[SETTINGS]
    _warn_of_missing_internals()
    async with AsyncExitStack() as stack:
        redis, batcher = await _open_redis(stack, settings)
        groq = await _open_groq(stack, settings)
        registry = TurnRegistry(EventLog(batcher), error_event_data)
        await stack.enter_async_context(registry.publishing())
        event_streams = EventStreams(write_timeout_s=settings.stream_write_timeout_s)
        await stack.enter_async_context(event_streams.watching())
        catalog = ModelCatalog(groq, settings.groq_allowed_models)
        await stack.enter_async_context(catalog.refreshing())
        history_store = RedisChatService(
            redis, batcher, ttl_s=settings.chat_history_ttl, timeout_s=settings.redis_timeout_s
        )
        await stack.enter_async_context(history_store.checking_late_writes())
        max_turns, max_body_bytes = settings.max_concurrent_turns, settings.max_request_buffer_bytes
        limiter = TurnLimiter(max_turns, max_body_bytes=max_body_bytes)
        chat = ChatService(
            history=history_store, groq=groq, turns=registry, limiter=limiter, settings=settings
        )
        proxy = OpenAIProxy(
            groq=groq,
            conversations=Conversations(history_store, settings),
            turns=registry,
            limiter=limiter,
            settings=settings,
        )
        idempotency = IdempotencyKeys(batcher=batcher, chat=chat, turns=registry)
        await stack.enter_async_context(idempotency.waiters.renewing())
        app[SERVICES] = Services(
            settings=settings,
            history=history_store,
            chat=chat,
            turns=registry,
            idempotency=idempotency,
            catalog=catalog,
            openai=proxy,
            keyed_completions=KeyedCompletions(
                proxy=proxy,
                keys=idempotency,
                turns=registry,
                limiter=limiter,
                timeout_s=settings.groq_timeout_s,
            ),
            limiter=limiter,
            event_streams=event_streams,
        )
        yield


async def _open_redis(stack: AsyncExitStack, settings: Settings) -> tuple[Redis, CommandBatcher]:
    redis = await stack.enter_async_context(open_redis(settings))
    batcher = CommandBatcher(redis, timeout_s=settings.redis_timeout_s)
    await stack.enter_async_context(batcher)
    await _log_redis_state(settings, redis, batcher)
    await stack.enter_async_context(prune_index(redis, settings.redis_timeout_s))
    return redis, batcher


async def _open_groq(stack: AsyncExitStack, settings: Settings) -> GroqClient:
    stack.enter_context(masking(settings.groq_api_key))
    base_url = await stack.enter_async_context(groq_base_url_of(settings))
    return await stack.enter_async_context(open_groq_client(settings, base_url))


async def _drain(app: web.Application) -> None:
    """Wait for turns and their followers before the connections of clients are closed."""
    services = app[SERVICES]

    def end_streams() -> None:
        services.turns.shut_down()
        services.openai.shut_down()

    await services.limiter.drain(services.settings.shutdown_grace_s, end_streams)


@asynccontextmanager
async def groq_base_url_of(settings: Settings) -> AsyncIterator[str]:
    """Yield the base URL of Groq's API; run the mock Groq server if it is configured."""
    if settings.is_offline:
        async with serve_mock_groq(parse_options(settings.offline_options)) as base_url:
            log.info("[Groq] offline: completions come from the mock Groq server at %s", base_url)
            yield base_url
        return
    if settings.groq_api_key is None:
        log.warning(
            "[Groq] WARNING: GROQ_API_KEY is not set; chat requests return 503. "
            "`groqchat serve --local` needs no key and no Redis."
        )
    else:
        log.info("[Groq] %s, model %s", settings.groq_base_url, settings.groq_default_model)
    yield settings.groq_base_url


async def _log_redis_state(settings: Settings, redis: Redis, batcher: CommandBatcher) -> None:
    address = settings.redis_address
    try:
        async with redis_errors(settings.redis_timeout_s):
            await redis.ping()
    except StorageError as error:
        log.warning("[Redis Chat] WARNING: Could not connect to Redis at %s", address)
        log.warning(
            "[Redis Chat] answering without history until Redis is available: %s", error.detail
        )
        return
    if address.startswith("memory:"):
        log.warning(
            "[Redis Chat] WARNING: with REDIS_URL=memory:, messages are lost when this process ends"
        )
    elif (state := await WriteProbe(batcher).state()) == OK:
        log.info("[Redis Chat] Connected to Redis at %s", address)
    else:
        log.warning("[Redis Chat] WARNING: Redis at %s: %s", address, state)


def _warn_of_missing_internals() -> None:
    """Log one warning if private internals of the libraries are missing.

    The command batcher and the Groq client then use the public APIs, which are slower.
    """
    missing = redis_internals.missing_internals() + aiohttp_internals.missing_internals()
    if missing:
        log.warning("using slower public APIs, because private internals are missing: %s", missing)
