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


def settings_of(app: web.Application) -> Settings:
    """Return the settings."""
    return app[_SETTINGS]


def history_of(app: web.Application) -> RedisChatService:
    """Return the history store."""
    return app[_HISTORY]


def chat_of(app: web.Application) -> ChatService:
    """Return the chat service."""
    return app[_CHAT]
