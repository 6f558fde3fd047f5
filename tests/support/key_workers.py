"""Workers that run the turns of Idempotency-Keys."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis

from groqchat import sse
from groqchat.errors import (
    UnknownModel,
)
from groqchat.models import ChatRequest
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import Completion, Prompt, StreamParser
from groqchat.services.history_store import HistoryStore
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.idempotency import IdempotencyKeys
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.turn import Turn
from groqchat.settings import Settings
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.keys import Command

KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"


@dataclass
class ScriptedGroq:
    """A Groq client that answers "Hi"; `before` runs before each answer."""

    prompts: list[Prompt] = field(default_factory=list)
    before: Callable[[], Awaitable[None]] | None = None
    is_known: bool = True

    def check_model(self, model: str | None) -> None:
        if not self.is_known:
            raise UnknownModel(f"{model} is not allowed")

    async def complete(self, prompt: Prompt) -> Completion:
        self.prompts.append(prompt)
        if self.before is not None:
            await self.before()
        return Completion(text="Hi", model=prompt.model, tokens=1, finish_reason="stop")

    async def stream(self, prompt: Prompt, parser: StreamParser) -> AsyncGenerator[str, None]:
        completion = await self.complete(prompt)
        parser.finish_reason = completion.finish_reason
        yield completion.text


class RecordingBatcher(CommandBatcher):
    """A command batcher that records its commands."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, timeout_s=5)
        self.commands: list[Command] = []

    def transact(self, commands: Sequence[Command]) -> Any:
        self.commands += commands
        return super().transact(commands)

    def count(self, name: str, key: str) -> int:
        """Return how often a command was sent whose first argument has a prefix."""
        return sum(
            command[0] == name and str(command[1]).startswith(key) for command in self.commands
        )


class Worker:
    """A worker with room for two turns."""

    def __init__(self, redis: Redis) -> None:
        self.groq = ScriptedGroq()
        self.batcher = RecordingBatcher(redis)
        self.history = HistoryStore(redis, self.batcher, ttl_s=1000, timeout_s=5)
        self.limiter = TurnLimiter(2)
        self.turns = TurnRegistry(EventLog(self.batcher), lambda error: {"error": str(error)})
        self.chat = ChatService(
            history=self.history,
            groq=cast("GroqClient", self.groq),
            turns=self.turns,
            limiter=self.limiter,
            settings=Settings(),
        )
        self.keys = IdempotencyKeys(batcher=self.batcher, chat=self.chat, turns=self.turns)

    def running(self, turn_id: str) -> Turn:
        """Return a turn that this worker runs."""
        return self.turns._local[turn_id].turn

    async def outcome(self, key: str = KEY, **fields: Any) -> dict[str, Any]:
        """Return the data of the `done` event of a key's turn."""
        event = await asyncio.wait_for(self.keys.outcome(key, request(**fields)), 10)
        name, data = sse.parse_event(event)
        assert name == "done"
        response: dict[str, Any] = json.loads(data)
        return response


def request(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"message": "Hello", "session_id": "s", **fields})
