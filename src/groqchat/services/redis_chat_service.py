"""The history for library users: a connection of its own, and calls without pages."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from groqchat.configuration import given_settings
from groqchat.errors import HistoryFailed
from groqchat.services.history_store import HistoryStore
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.connection import open_redis
from groqchat.storage.index_pruner import prune_index
from groqchat.storage.message_ids import new_single_id
from groqchat.storage.messages import ROLES, Message

# Many times more than a conversation or a user interface has. A list of this length takes some
# hundred MB. `iter_history` and `iter_sessions` have no such limit.
MAX_LISTED = 100_000
DEFAULT_TTL_S = 86400
DEFAULT_TIMEOUT_S = 2.0


class RedisChatService(HistoryStore):
    """The history store with a connection of its own and with lists instead of pages.

    ```python
    async with RedisChatService.from_url("redis://localhost:6379/0") as history:
        await history.save_message("user-123", "user", "What is Python?")
        messages = await history.get_session_history("user-123")
    ```

    Every method raises HistoryUnavailable if Redis cannot be reached within the timeout.
    """

    @classmethod
    @asynccontextmanager
    async def from_url(
        cls, url: str, *, ttl_s: int = DEFAULT_TTL_S, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> AsyncIterator[Self]:
        """Open the history of a Redis server; close its connections when the context exits.

        `url` is a value of the setting REDIS_URL, such as `redis://`, `rediss://`, `unix://` or
        `embedded:DIR`. A session expires `ttl_s` seconds after its last message. Raises
        ConfigurationError if a value is not valid. The environment and `.env` are not read.
        """
        settings = given_settings(redis_url=url, chat_history_ttl=ttl_s, redis_timeout_s=timeout_s)
        async with (
            open_redis(settings) as redis,
            CommandBatcher(redis, timeout_s=timeout_s) as batcher,
            prune_index(redis, timeout_s),
        ):
            history = cls(redis, batcher, ttl_s=ttl_s, timeout_s=timeout_s)
            async with history.checking_late_writes():
                yield history

    async def save_message(
        self, session_id: str, role: str, content: str, model: str | None = None
    ) -> Message:
        """Store a message, renew the session's TTL and return the message with its id and time.

        Raises ValueError if the role is not one of user, assistant, system and tool, and TypeError
        if the content is not a string.
        """
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise TypeError("content must be a string")
        message = Message(id=new_single_id(), role=ROLES[role], content=content, model=model)
        await self.save_messages(session_id, message)
        return message

    async def get_session_history(self, session_id: str) -> list[Message]:
        """Return all messages of a session in time order, an empty list for an unknown session.

        Raises HistoryFailed for more than MAX_LISTED messages: read them with `iter_history`.
        """
        messages: list[Message] = []
        async for message in self.iter_history(session_id):
            messages.append(message)
            _check_length(len(messages), "iter_history")
        return messages

    async def get_all_sessions(self) -> list[str]:
        """Return the ids of all live sessions, the latest activity first.

        Raises HistoryFailed for more than MAX_LISTED sessions: read them with `iter_sessions`.
        """
        sessions: list[str] = []
        async for session_id in self.iter_sessions():
            sessions.append(session_id)
            _check_length(len(sessions), "iter_sessions")
        return sessions

    async def iter_history(self, session_id: str) -> AsyncIterator[Message]:
        """Yield the messages of a session in time order, read page by page."""
        page = await self.get_history_page(session_id, oldest_first=True)
        while True:
            for message in page.messages:
                yield message
            if not page.has_more:
                return
            page = await self.get_history_page(session_id, after=page.last_id)

    async def iter_sessions(self) -> AsyncIterator[str]:
        """Yield the ids of the live sessions, the latest activity first, read page by page."""
        page = await self.get_sessions_page()
        while True:
            for session_id in page.sessions:
                yield session_id
            if page.cursor is None:
                return
            page = await self.get_sessions_page(after=page.cursor)


def _check_length(count: int, alternative: str) -> None:
    if count > MAX_LISTED:
        raise HistoryFailed(f"more than {MAX_LISTED} entries: use {alternative}")
