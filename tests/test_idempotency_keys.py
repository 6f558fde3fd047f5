"""Idempotency keys: which request runs the turn of a key, and which requests follow it."""

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
    HistoryUnavailable,
    IdempotencyKeyReused,
    Overloaded,
    ShuttingDown,
    TurnLost,
    UnknownModel,
)
from groqchat.models import ChatRequest
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import Completion, Prompt, StreamParser
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.services.turns import registry
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


async def test_the_first_request_runs_the_turn_and_the_others_follow_it(
    worker: Worker, other: Worker
) -> None:
    release = asyncio.Event()

    async def wait() -> None:
        await release.wait()

    worker.groq.before = wait
    events, turn = await worker.keys.follow(KEY, request())
    assert turn is not None
    assert turn.is_shared is True
    same_worker, same_turn = await worker.keys.follow(KEY, request())
    other_worker, other_turn = await other.keys.follow(KEY, request())
    assert same_turn is None
    assert other_turn is None
    release.set()
    expected = await read(events)
    assert expected == b"".join(turn.events)
    assert await read(same_worker) == await read(other_worker) == expected
    assert (len(worker.groq.prompts), len(other.groq.prompts)) == (1, 0)
    messages = (await worker.history.get_session_history("s")).messages
    assert [message.content for message in messages] == ["Hello", "Hi"]
    assert messages[0].id == turn.id


async def test_a_later_request_receives_the_same_outcome(worker: Worker, other: Worker) -> None:
    first = await worker.outcome()
    assert first["message"] == "Hi"
    assert await worker.outcome() == first
    assert await other.outcome() == first
    assert len(worker.groq.prompts) == 1


async def test_different_keys_run_different_turns(worker: Worker) -> None:
    first, second = await worker.outcome("a"), await worker.outcome("b")
    assert first["turn_id"] != second["turn_id"]
    assert len(worker.groq.prompts) == 2


async def test_a_turn_without_a_session_id_has_one_session_for_all_requests(
    worker: Worker,
) -> None:
    first = await worker.outcome("a", session_id=None)
    assert await worker.outcome("a", session_id=None) == first
    other = await worker.outcome("b", session_id=None)
    assert first["session_id"] != other["session_id"]
    assert len(first["session_id"]) == 36


async def test_a_turn_uses_the_session_id_of_its_request(worker: Worker) -> None:
    assert (await worker.outcome(session_id="given"))["session_id"] == "given"


@pytest.mark.parametrize("fields", [{"stream": True}, {"on_disconnect": "cancel"}])
async def test_the_form_of_delivery_may_differ_between_requests(
    worker: Worker, fields: dict[str, Any]
) -> None:
    first = await worker.outcome()
    assert await worker.outcome(**fields) == first


@pytest.mark.parametrize(
    "fields",
    [{"message": "Bye"}, {"session_id": "t"}, {"session_id": None}, {"context": 1}, {"top_p": 1}],
)
async def test_a_key_cannot_be_reused_with_a_different_request(
    worker: Worker, fields: dict[str, Any]
) -> None:
    await worker.outcome()
    with pytest.raises(IdempotencyKeyReused) as error:
        await worker.keys.follow(KEY, request(**fields))
    assert error.value.param == "Idempotency-Key"
    assert len(worker.groq.prompts) == 1


async def test_the_record_of_a_key_expires_after_an_hour_and_contains_no_key(
    worker: Worker, fake_redis: FakeAsyncRedis
) -> None:
    response = await worker.outcome()
    (name,) = await fake_redis.keys(f"{keys.IDEMPOTENCY_PREFIX}*")
    assert KEY.encode() not in name
    assert len(name) == len(keys.IDEMPOTENCY_PREFIX) + 64
    assert keys.IDEMPOTENCY_TTL_S - 5 <= await fake_redis.ttl(name) <= keys.IDEMPOTENCY_TTL_S
    record = json.loads(await fake_redis.get(name) or b"")
    assert record == {
        "turn_id": response["turn_id"],
        "session_id": "s",
        "fingerprint": record["fingerprint"],
    }
    assert len(record["fingerprint"]) == 64


async def test_a_claim_expires_with_the_lease_if_its_worker_dies(
    worker: Worker, fake_redis: FakeAsyncRedis
) -> None:
    _, turn = await worker.keys.follow(KEY, request())
    assert turn is not None
    ttl_s = await fake_redis.ttl(keys.claim_key(turn.id))
    assert keys.TURN_LEASE_S - 5 <= ttl_s <= keys.TURN_LEASE_S
    await turn.final_event()


@pytest.mark.parametrize("session_id", ["s", None])
async def test_a_request_runs_the_turn_whose_claim_has_expired(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis, session_id: str | None
) -> None:
    first = await worker.outcome(session_id=session_id)
    await wait_until(lambda: is_removed(worker, first["turn_id"]))
    await fake_redis.delete(keys.turn_key(first["turn_id"]), keys.claim_key(first["turn_id"]))
    second = await other.outcome(session_id=session_id)
    assert (second["turn_id"], second["session_id"]) == (first["turn_id"], first["session_id"])
    assert len(other.groq.prompts) == 1


async def is_removed(worker: Worker, turn_id: str) -> bool:
    return turn_id not in worker.turns._local


async def test_a_turn_that_cannot_start_deletes_its_claim(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis
) -> None:
    worker.groq.is_known = False
    with pytest.raises(UnknownModel):
        await worker.outcome()
    assert await fake_redis.keys(f"{keys.CLAIM_PREFIX}*") == []
    assert (await other.outcome())["message"] == "Hi"


async def test_a_full_or_stopping_worker_claims_no_turn(
    worker: Worker,
) -> None:
    release = asyncio.Event()

    async def wait() -> None:
        await release.wait()

    worker.groq.before = wait
    running = [asyncio.create_task(worker.chat.answer(request())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await worker.outcome()
    release.set()
    await asyncio.gather(*running)
    await worker.limiter.drain(0, lambda: None)
    with pytest.raises(ShuttingDown):
        await worker.outcome()
    assert worker.batcher.count("SET", keys.CLAIM_PREFIX) == 0


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


async def test_a_request_polls_while_another_worker_starts_the_turn(
    worker: Worker, other: Worker, fake_redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "NEW_TURN_S", 0)
    turn_id = await claim_for_a_dead_worker(worker, fake_redis)
    following = asyncio.create_task(other.outcome())
    await polls(other, 2)
    assert not following.done()
    await fake_redis.delete(keys.claim_key(turn_id))
    response = await following
    assert response["turn_id"] == turn_id
    assert len(other.groq.prompts) == 1


async def test_a_turn_that_does_not_start_within_the_lease_is_lost(
    worker: Worker, fake_redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(registry, "NEW_TURN_S", 0)
    turn_id = await claim_for_a_dead_worker(worker, fake_redis)
    following = asyncio.create_task(worker.keys.follow(KEY, request()))
    await polls(worker, 1)
    # The lease and five seconds more.
    clock.advance(19.5)
    await polls(worker, 3)
    assert not following.done()
    clock.advance(0.5)
    with pytest.raises(TurnLost) as lost:
        await asyncio.wait_for(following, 0.5)
    assert lost.value.detail == f"turn {turn_id} did not start"


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


@pytest.mark.parametrize("ending", [TurnLost("died"), DELTA, None])
async def test_a_lost_turn_is_run_again_once(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, ending: Exception | bytes | None
) -> None:
    lost = LostTurns(worker, monkeypatch, ending)
    assert (await worker.outcome())["message"] == "Hi"
    assert lost.follows == 2


@pytest.mark.parametrize(
    ("ending", "detail"),
    [(TurnLost("died"), "died"), (DELTA, "the events ended without an outcome")],
)
async def test_a_turn_that_is_lost_twice_is_an_error(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, ending: Exception | bytes, detail: str
) -> None:
    lost = LostTurns(worker, monkeypatch, ending, ending)
    with pytest.raises(TurnLost) as error:
        await worker.outcome()
    assert error.value.detail == detail
    assert lost.follows == 2


async def test_another_failure_is_not_repeated(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = LostTurns(worker, monkeypatch, HistoryUnavailable("down"))
    with pytest.raises(HistoryUnavailable):
        await worker.outcome()
    assert lost.follows == 1


@pytest.mark.parametrize("name", ["done", "error"])
async def test_an_error_event_is_an_outcome_too(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    event = sse.encode_event(b'{"x":1}', name=name, number=2)
    lost = LostTurns(worker, monkeypatch, event)
    found = await worker.keys.outcome(KEY, request())
    assert found == event.removesuffix(sse.EVENT_END)
    assert lost.follows == 1
