"""What the application holds for its requests, behind typed getters."""

from aiohttp import web

from groqchat.services.chat import ChatService
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.settings import Settings

_SETTINGS = web.AppKey("settings", Settings)
_HISTORY = web.AppKey("history", RedisChatService)
_CHAT = web.AppKey("chat", ChatService)


def set_settings(app: web.Application, settings: Settings) -> None:
    """Give the application its settings, before it starts."""
    app[_SETTINGS] = settings


def set_services(app: web.Application, history: RedisChatService, chat: ChatService) -> None:
    """Give the application its services, while it starts."""
    app[_HISTORY] = history
    app[_CHAT] = chat


def app_settings(app: web.Application) -> Settings:
    """Return the settings, before there is a request."""
    return app[_SETTINGS]


def settings_of(request: web.Request) -> Settings:
    """Return the settings."""
    return request.app[_SETTINGS]


def history_of(request: web.Request) -> RedisChatService:
    """Return the history store."""
    return request.app[_HISTORY]


def app_chat(app: web.Application) -> ChatService:
    """Return the chat service, where there is no request."""
    return app[_CHAT]


def chat_of(request: web.Request) -> ChatService:
    """Return the chat service."""
    return request.app[_CHAT]
