"""What the tests of this folder share."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio import Redis

from groqchat import sse
from groqchat.errors import (
    UnknownModel,
)
from groqchat.models import ChatRequest
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import Completion, Prompt, StreamParser
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.idempotency import IdempotencyKeys
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.turn import Turn
from groqchat.settings import Settings
from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.keys import Command
from tests.support.streams import wait_until

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
        """Return how often a command was sent for keys with a prefix."""
        return sum(
            command[0] == name and str(command[1]).startswith(key) for command in self.commands
        )


class Clock:
    """The time of the event loop, which a test can move forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real_time = loop.time
        self._offset_s = 0.0
        monkeypatch.setattr(loop, "time", lambda: real_time() + self._offset_s)

    def advance(self, seconds: float) -> None:
        """Move the time forward; timers that are due run at the next step of the event loop."""
        self._offset_s += seconds


class Worker:
    """A worker with room for two turns."""

    def __init__(self, redis: Redis) -> None:
        self.groq = ScriptedGroq()
        self.batcher = RecordingBatcher(redis)
        self.history = RedisChatService(redis, self.batcher, ttl_s=1000, timeout_s=5)
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

    async def outcome(self, key: str = KEY, **fields: Any) -> dict[str, Any]:
        """Return the data of the `done` event of a key's turn."""
        event = await asyncio.wait_for(self.keys.outcome(key, request(**fields)), 10)
        name, data = sse.parse_event(event)
        assert name == "done"
        response: dict[str, Any] = json.loads(data)
        return response


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's event loop."""
    return Clock(monkeypatch)


@pytest.fixture
async def fake_redis() -> AsyncIterator[FakeAsyncRedis]:
    """An empty database of fakeredis."""
    async with FakeAsyncRedis(server=FakeServer()) as client:
        yield client


@pytest.fixture
async def worker(fake_redis: FakeAsyncRedis) -> AsyncIterator[Worker]:
    """A worker."""
    worker = Worker(fake_redis)
    async with worker.turns.publishing():
        yield worker


@pytest.fixture
async def other(fake_redis: FakeAsyncRedis) -> AsyncIterator[Worker]:
    """Another worker on `fake_redis`."""
    worker = Worker(fake_redis)
    async with worker.turns.publishing():
        yield worker


def request(**fields: Any) -> ChatRequest:
    return ChatRequest(**{"message": "Hello", "session_id": "s", **fields})


async def read(events: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(10):
        return b"".join([each async for each in events])


async def is_removed(worker: Worker, turn_id: str) -> bool:
    return turn_id not in worker.turns._local


async def claim_for_a_dead_worker(worker: Worker, redis: Redis) -> str:
    """Claim the turn of the key as a worker that dies at once; return the turn's id."""
    worker.groq.is_known = False
    with pytest.raises(UnknownModel):
        await worker.outcome()
    worker.groq.is_known = True
    (name,) = await redis.keys(f"{keys.IDEMPOTENCY_PREFIX}*")
    record = await redis.get(name)
    turn_id: str = json.loads(record or b"")["turn_id"]
    await redis.set(keys.claim_key(turn_id), "dead")
    return turn_id


async def polls(worker: Worker, count: int) -> None:
    """Wait until a worker has tried to claim a turn this often again."""
    before = worker.batcher.count("SET", keys.CLAIM_PREFIX)

    async def has_polled() -> bool:
        return worker.batcher.count("SET", keys.CLAIM_PREFIX) >= before + count

    await wait_until(has_polled)


class LostTurns:
    """Turns whose events end without an outcome, as after the death of a worker."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch, *endings: Any) -> None:
        self.follows = 0
        self._endings = list(endings)
        self._follow = worker.keys.follow
        monkeypatch.setattr(worker.keys, "follow", self._lose)

    async def _lose(
        self, key: str, request: ChatRequest
    ) -> tuple[AsyncIterator[bytes], Turn | None]:
        self.follows += 1
        if self._endings:
            return self._end(self._endings.pop(0)), None
        return await self._follow(key, request)

    async def _end(self, ending: Exception | bytes | None) -> AsyncIterator[bytes]:
        yield sse.encode_event(b"{}", name="start", number=1)
        if isinstance(ending, Exception):
            raise ending
        if ending:
            yield ending


DELTA = sse.encode_event(b"{}", name="delta", number=2)
