"""What the tests of this folder share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import Redis

from groqchat.services.redis_chat_service import (
    RedisChatService,
)
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.keys import Command
from groqchat.storage.messages import Message, PromptMessage
from tests.support.store import new_message

TTL_S = 1000


KEY = "chat:session:s"


INDEX = "chat:sessions"


class RecordingBatcher(CommandBatcher):
    """A command batcher that records each transaction; `before` runs before it."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, timeout_s=5)
        self.transactions: list[list[Command]] = []
        self.before: Callable[[int], Awaitable[None]] | None = None

    def transact(self, commands: Sequence[Command]) -> Any:
        self.transactions.append(list(commands))
        return self._run(len(self.transactions), commands)

    async def _run(self, number: int, commands: Sequence[Command]) -> list[Any]:
        if self.before is not None:
            await self.before(number)
        return await super().transact(commands)

    @property
    def names(self) -> list[list[Any]]:
        """The names of the commands of each transaction."""
        return [[command[0] for command in commands] for commands in self.transactions]


@pytest.fixture
async def fake_redis() -> AsyncIterator[FakeAsyncRedis]:
    """An empty database of fakeredis."""
    async with FakeAsyncRedis(server=FakeServer()) as client:
        yield client


@pytest.fixture
async def batcher(fake_redis: FakeAsyncRedis) -> RecordingBatcher:
    """The command batcher of `history`."""
    return RecordingBatcher(fake_redis)


@pytest.fixture
async def history(fake_redis: FakeAsyncRedis, batcher: RecordingBatcher) -> RedisChatService:
    """A history store on `fake_redis`."""
    return RedisChatService(fake_redis, batcher, ttl_s=TTL_S, timeout_s=5)


async def stored(history: RedisChatService) -> list[Message]:
    return (await history.get_session_history("s")).messages


def prompt(*messages: Message) -> list[PromptMessage]:
    return [{"role": each.role, "content": each.content} for each in messages]


def new_answer(content: str, **fields: str) -> Message:
    return new_message(content, "assistant", finish_reason="stop", **fields)


def numbered(count: int) -> list[Message]:
    return [new_message(f"m{number}") for number in range(count)]


class FailingBatcher(RecordingBatcher):
    """A command batcher whose first transactions fail with these errors."""

    def __init__(self, redis: Redis, *errors: Exception) -> None:
        super().__init__(redis)
        self._errors = list(errors)

    async def _run(self, number: int, commands: Sequence[Command]) -> list[Any]:
        if self._errors:
            raise self._errors.pop(0)
        return await super()._run(number, commands)


async def read_page(history: RedisChatService, **options: Any) -> tuple[list[str], bool]:
    page = await history.get_session_history("s", **options)
    ids = [message.id for message in page.messages]
    assert (page.first_id, page.last_id) == (ids[0], ids[-1]) if ids else (None, None)
    assert page.message_count == 6
    return [message.content for message in page.messages], page.has_more


@pytest.fixture
async def silent_redis(tmp_path: Path) -> AsyncIterator[Redis]:
    """A client of a server that accepts connections and never replies."""
    is_over = asyncio.Event()

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await is_over.wait()
        writer.close()

    path = str(tmp_path / "redis.sock")
    async with (
        await asyncio.start_unix_server(ignore, path),
        Redis(unix_socket_path=path, protocol=2) as client,
    ):
        yield client
        is_over.set()
