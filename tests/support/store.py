"""A history store with a batcher of its own."""

from redis.asyncio import Redis

from groqchat.services.redis_chat_service import RedisChatService
from groqchat.storage.command_batcher import CommandBatcher

TTL_S = 86400


def new_store(redis: Redis, *, ttl_s: int = TTL_S, timeout_s: float = 5) -> RedisChatService:
    """Return a store over a client; the batcher needs no closing, because each test awaits it."""
    batcher = CommandBatcher(redis, timeout_s=timeout_s)
    return RedisChatService(redis, batcher, ttl_s=ttl_s, timeout_s=timeout_s)
