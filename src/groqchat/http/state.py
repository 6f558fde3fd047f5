"""What the application holds for its requests, behind typed getters."""

from dataclasses import dataclass

from aiohttp import web

from groqchat.http.event_stream import EventStreams
from groqchat.services.admission import Admission
from groqchat.services.chat import ChatService
from groqchat.services.compatible_chat import CompatibleChat
from groqchat.services.idempotency import Idempotency
from groqchat.services.model_catalog import ModelCatalog
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.services.turns import Turns
from groqchat.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What there is while the application runs."""

    history: RedisChatService
    chat: ChatService
    turns: Turns
    idempotency: Idempotency
    catalog: ModelCatalog
    compatible: CompatibleChat
    admission: Admission
    event_streams: EventStreams


_SETTINGS = web.AppKey("settings", Settings)
_SERVICES = web.AppKey("services", Services)


def set_settings(app: web.Application, settings: Settings) -> None:
    """Give the application its settings, before it starts."""
    app[_SETTINGS] = settings


def set_services(app: web.Application, services: Services) -> None:
    """Give the application its services, while it starts."""
    app[_SERVICES] = services


def settings_of(app: web.Application) -> Settings:
    """Return the settings."""
    return app[_SETTINGS]


def history_of(app: web.Application) -> RedisChatService:
    """Return the history store."""
    return app[_SERVICES].history


def chat_of(app: web.Application) -> ChatService:
    """Return the chat service."""
    return app[_SERVICES].chat


def turns_of(app: web.Application) -> Turns:
    """Return the turns that can be followed and stopped."""
    return app[_SERVICES].turns


def idempotency_of(app: web.Application) -> Idempotency:
    """Return what runs a turn once for its Idempotency-Key."""
    return app[_SERVICES].idempotency


def catalog_of(app: web.Application) -> ModelCatalog:
    """Return the list of models."""
    return app[_SERVICES].catalog


def compatible_of(app: web.Application) -> CompatibleChat:
    """Return the chat in Groq's own wire format."""
    return app[_SERVICES].compatible


def admission_of(app: web.Application) -> Admission:
    """Return what counts the turns under way."""
    return app[_SERVICES].admission


def event_streams_of(app: web.Application) -> EventStreams:
    """Return what sends server-sent events."""
    return app[_SERVICES].event_streams
