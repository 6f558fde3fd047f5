"""The services that handlers use, stored in the application under typed keys."""

from dataclasses import dataclass

from aiohttp import web

from groqchat.http.event_stream import EventStreams
from groqchat.services.groq.model_catalog import ModelCatalog
from groqchat.services.openai.keyed import KeyedCompletions
from groqchat.services.openai.proxy import OpenAIProxy
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.idempotency import IdempotencyKeys
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that a handler may use; each handler receives it after the request."""

    settings: Settings
    history: RedisChatService
    chat: ChatService
    turns: TurnRegistry
    idempotency: IdempotencyKeys
    catalog: ModelCatalog
    openai: OpenAIProxy
    keyed_completions: KeyedCompletions
    limiter: TurnLimiter
    event_streams: EventStreams


SETTINGS = web.AppKey("settings", Settings)
# Set while the application starts.
SERVICES = web.AppKey("services", Services)
