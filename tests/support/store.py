"""A history store, and messages for it."""

from redis.asyncio import Redis

from groqchat.services.history_store import HistoryStore
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message, Role

TTL_S = 86400
MODEL = "openai/gpt-oss-20b"


def new_store(redis: Redis, *, ttl_s: int = TTL_S, timeout_s: float = 5) -> HistoryStore:
    """Return a store with its own command batcher, which needs no close: tests await every call."""
    batcher = CommandBatcher(redis, timeout_s=timeout_s)
    return HistoryStore(redis, batcher, ttl_s=ttl_s, timeout_s=timeout_s)


def new_message(content: str, role: Role = "user", **fields: str) -> Message:
    """Return a message with a new id."""
    return Message(id=new_message_id(), role=role, content=content, model=MODEL, **fields)  # type: ignore[arg-type] # only text fields are passed


async def save_messages(store: HistoryStore, count: int, session_id: str = "s") -> list[Message]:
    """Save new user messages in a session and return them."""
    messages = [new_message(f"m{number}") for number in range(count)]
    await store.save_messages(session_id, *messages)
    return messages
