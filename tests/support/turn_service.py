"""A chat service with a scripted model, and helpers that run its turns."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from fakeredis import FakeAsyncRedis, FakeServer

from groqchat import sse
from groqchat.errors import (
    GroqChatError,
    HistoryUnavailable,
    UnknownModel,
)
from groqchat.models import ChatRequest
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import Completion, Prompt, StreamParser
from groqchat.services.history_store import HistoryStore
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.turn import Turn
from groqchat.settings import Settings
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.keys import Command
from groqchat.storage.messages import Message

MODEL = "requested/model"
ACTUAL_MODEL = "actual/model"


@dataclass
class ScriptedGroq:
    """A Groq client that answers from a script.

    `texts` are the parts of the answer. `error` is raised after them. `before` runs before the
    first part, `after_part` after each part of a stream.
    """

    texts: Sequence[str] = ("Hel", "lo")
    finish_reason: str | None = "length"
    error: Exception | None = None
    is_configured: bool = True
    before: Callable[[], Awaitable[None]] | None = None
    after_part: Callable[[], Awaitable[None]] | None = None
    prompts: list[Prompt] = field(default_factory=list)

    def check_model(self, model: str | None) -> None:
        if model == "no/model":
            raise UnknownModel("not allowed")

    async def complete(self, prompt: Prompt) -> Completion:
        self.prompts.append(prompt)
        if self.before is not None:
            await self.before()
        if self.error is not None:
            raise self.error
        return Completion(
            text="".join(self.texts),
            model=ACTUAL_MODEL,
            tokens=12,
            finish_reason=self.finish_reason or "stop",
        )

    async def stream(self, prompt: Prompt, parser: StreamParser) -> AsyncGenerator[str, None]:
        self.prompts.append(prompt)
        if self.before is not None:
            await self.before()
        for text in self.texts:
            yield text
            if self.after_part is not None:
                await self.after_part()
        if self.error is not None:
            raise self.error
        parser.model = ACTUAL_MODEL
        parser.tokens = 12
        parser.finish_reason = self.finish_reason


class FlakyBatcher(CommandBatcher):
    """A command batcher that fails while `is_down`; `failures` are the numbers of failing calls."""

    calls = 0
    is_down = False
    failures: Sequence[int] = ()

    def transact(self, commands: Sequence[Command]) -> Any:
        self.calls += 1
        if self.is_down or self.calls in self.failures:
            raise HistoryUnavailable("down")
        return super().transact(commands)


@dataclass
class Service:
    """A chat service with its collaborators."""

    chat: ChatService
    groq: ScriptedGroq
    batcher: FlakyBatcher
    history: HistoryStore
    turns: TurnRegistry
    limiter: TurnLimiter

    async def stored(self, session_id: str = "s") -> list[Message]:
        return (await self.history.get_history_page(session_id)).messages

    async def contents(self, session_id: str = "s") -> list[str]:
        return [message.content for message in await self.stored(session_id)]


def encode_error(error: Exception) -> dict[str, Any]:
    """Return the data of an error event, as the web layer does."""
    code = error.code if isinstance(error, GroqChatError) else "internal_error"
    return {"code": code, "type": type(error).__name__}


def request(message: str = "Hello", **fields: Any) -> ChatRequest:
    return ChatRequest(message=message, **{"session_id": "s", **fields})


def events_of(turn: Turn) -> list[tuple[str, Any]]:
    """Return name and data of each event of a turn."""
    numbers = [sse.event_number(event) for event in turn.events]
    first = turn.claim.first_number if turn.claim else 1
    assert numbers == list(range(first, first + len(numbers)))
    return [(name, json.loads(data)) for name, data in map(sse.parse_event, turn.events)]


async def run_to_end(service: Service, request: ChatRequest, **options: Any) -> Turn:
    """Run a turn with events and return it after its end."""
    turn = service.chat.start(request, **options)
    await asyncio.wait_for(turn.final_event(), 5)
    assert turn.is_over
    assert len(service.limiter) == 0
    return turn


def prompts(service: Service) -> list[list[tuple[str, str]]]:
    """Return role and content of the messages of each prompt."""
    return [
        [(message["role"], message["content"]) for message in prompt.messages]
        for prompt in service.groq.prompts
    ]


@asynccontextmanager
async def open_service() -> AsyncIterator[Service]:
    """A chat service on an empty database of fakeredis, with room for two turns."""
    async with FakeAsyncRedis(server=FakeServer()) as redis:
        batcher = FlakyBatcher(redis, timeout_s=5)
        history = HistoryStore(redis, batcher, ttl_s=1000, timeout_s=5)
        groq, limiter = ScriptedGroq(), TurnLimiter(2)
        turns = TurnRegistry(EventLog(batcher), encode_error)
        chat = ChatService(
            history=history,
            groq=cast("GroqClient", groq),
            turns=turns,
            limiter=limiter,
            settings=Settings(groq_default_model=MODEL, chat_context_tokens=16_000),
        )
        yield Service(chat, groq, batcher, history, turns, limiter)
