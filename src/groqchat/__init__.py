"""An async chat service that answers through Groq and stores every message in Redis."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from groqchat.services.redis_chat_service import RedisChatService
    from groqchat.storage.messages import Message

__version__ = "0.1.0"
__all__ = ["Message", "RedisChatService", "__version__"]


def __getattr__(name: str) -> object:
    """Import an exported class when it is used, so that `import groqchat` stays fast."""
    if name == "RedisChatService":
        from groqchat.services.redis_chat_service import RedisChatService  # noqa: PLC0415 - lazy

        return RedisChatService
    if name == "Message":
        from groqchat.storage.messages import Message  # noqa: PLC0415 - lazy

        return Message
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
