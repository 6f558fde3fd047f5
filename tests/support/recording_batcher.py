"""A command batcher that records what it sends."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio import Redis

from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.keys import Command


class RecordingBatcher(CommandBatcher):
    """A command batcher that records each transaction; `before` runs before it."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, timeout_s=5)
        self.transactions: list[list[Command]] = []
        self.before: Callable[[int], Awaitable[None]] | None = None

    def transact(self, commands: Sequence[Command]) -> Any:
        self.transactions.append(list(commands))
        return asyncio.ensure_future(self._run(len(self.transactions), commands))

    async def _run(self, number: int, commands: Sequence[Command]) -> list[Any]:
        if self.before is not None:
            await self.before(number)
        return await super().transact(commands)

    @property
    def names(self) -> list[list[Any]]:
        """The names of the commands of each transaction."""
        return [[command[0] for command in commands] for commands in self.transactions]
