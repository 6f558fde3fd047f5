"""The chat service: the messages, the response and the events of a turn, with each failure."""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from groqchat import sse
from groqchat.errors import (
    CompletionRejected,
    CompletionUnavailable,
    GroqChatError,
    HistoryUnavailable,
    Overloaded,
    ShuttingDown,
    UnknownModel,
)
from groqchat.models import ChatRequest, ChatResponse
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import Completion, Prompt, StreamParser
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.services.turns import chat as chat_module
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.turn import Turn
from groqchat.settings import Settings
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.keys import Command
from groqchat.storage.message_ids import new_message_id
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
    history: RedisChatService
    turns: TurnRegistry
    limiter: TurnLimiter

    async def stored(self, session_id: str = "s") -> list[Message]:
        return (await self.history.get_session_history(session_id)).messages

    async def contents(self, session_id: str = "s") -> list[str]:
        return [message.content for message in await self.stored(session_id)]


def encode_error(error: Exception) -> dict[str, Any]:
    """Return the data of an error event, as the web layer does."""
    code = error.code if isinstance(error, GroqChatError) else "internal_error"
    return {"code": code, "type": type(error).__name__}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """A chat service on an empty database of fakeredis, with room for two turns."""
    async with FakeAsyncRedis(server=FakeServer()) as redis:
        batcher = FlakyBatcher(redis, timeout_s=5)
        history = RedisChatService(redis, batcher, ttl_s=1000, timeout_s=5)
        groq, limiter = ScriptedGroq(), TurnLimiter(2)
        turns = TurnRegistry(EventLog(batcher), encode_error)
        chat = ChatService(
            history=history,
            groq=cast("GroqClient", groq),
            turns=turns,
            limiter=limiter,
            settings=Settings(groq_default_model=MODEL),
        )
        yield Service(chat, groq, batcher, history, turns, limiter)


def request(message: str = "Hello", **fields: Any) -> ChatRequest:
    return ChatRequest(message=message, **{"session_id": "s", **fields})


def events_of(turn: Turn) -> list[tuple[str, Any]]:
    """Return name and data of each event of a turn."""
    numbers = [sse.event_number(event) for event in turn.events]
    assert numbers == list(range(1, len(numbers) + 1))
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


# An answer as a whole


async def test_an_answer_is_returned_and_both_messages_are_stored(service: Service) -> None:
    response = await service.chat.answer(request())
    user_message, answer = await service.stored()
    assert user_message == Message(
        id=response.turn_id, role="user", content="Hello", model=MODEL, finish_reason=None
    )
    assert answer == Message(
        id=response.message_id,
        role="assistant",
        content="Hello",
        model=ACTUAL_MODEL,
        tokens=12,
        finish_reason="length",
    )
    assert response == ChatResponse(
        message="Hello",
        model=ACTUAL_MODEL,
        timestamp=answer.timestamp,
        tokens_used=12,
        finish_reason="length",
        session_id="s",
        message_id=answer.id,
        turn_id=user_message.id,
        history_saved=True,
        status=None,
    )
    assert service.groq.prompts == [
        Prompt(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
    ]


async def test_the_requests_model_and_options_reach_the_prompt(service: Service) -> None:
    await service.chat.answer(request(model="other/model", system_prompt="Be brief.", top_p=1))
    (prompt,) = service.groq.prompts
    assert (prompt.model, prompt.system_prompt, prompt.options) == (
        "other/model",
        "Be brief.",
        {"top_p": 1},
    )
    assert (await service.stored())[0].model == "other/model"


async def test_the_prompt_contains_the_earlier_messages(service: Service) -> None:
    await service.chat.answer(request("first"))
    await service.chat.answer(request("two"))
    await service.chat.answer(request("three", context=1))
    assert prompts(service)[1:] == [
        [("user", "first"), ("assistant", "Hello"), ("user", "two")],
        [("assistant", "Hello"), ("user", "three")],
    ]


async def test_the_token_budget_limits_how_much_of_a_long_context_is_read(
    service: Service,
) -> None:
    long = [Message(id=new_message_id(), role="user", content="x" * 3_000) for _ in range(60)]
    await service.history.save_message("s", *long)
    service.batcher.calls = 0
    # The budget of 24,000 tokens is 96,000 bytes: fewer than the first 50 messages have.
    await service.chat.answer(request(context=1000))
    assert service.batcher.calls == 2


async def test_without_a_session_id_the_turn_gets_a_new_session(service: Service) -> None:
    responses = [await service.chat.answer(request(session_id=None)) for _ in range(2)]
    names = {response.session_id for response in responses}
    assert len(names) == 2
    for name in names:
        assert str(uuid.UUID(name)) == name
        assert await service.contents(name) == ["Hello", "Hello"]
    assert prompts(service) == [[("user", "Hello")]] * 2


async def test_a_model_that_is_not_allowed_is_rejected_before_anything_is_stored(
    service: Service,
) -> None:
    with pytest.raises(UnknownModel):
        await service.chat.answer(request(model="no/model"))
    with pytest.raises(UnknownModel):
        service.chat.start(request(model="no/model"))
    assert await service.stored() == []
    assert len(service.limiter) == 0


@pytest.mark.parametrize("is_configured", [True, False])
async def test_the_service_is_configured_if_groq_is(
    service: Service,
    is_configured: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    service.groq.is_configured = is_configured
    assert service.chat.is_configured is is_configured


async def test_turns_over_the_limit_are_rejected(service: Service) -> None:
    release = asyncio.Event()

    async def wait() -> None:
        await release.wait()

    service.groq.before = wait
    plain = asyncio.create_task(service.chat.answer(request()))
    await asyncio.sleep(0)
    service.chat.check()
    turn = service.chat.start(request(stream=True))
    for start in (service.chat.check, lambda: service.chat.start(request())):
        with pytest.raises(Overloaded):
            start()
    with pytest.raises(Overloaded):
        await service.chat.answer(request("rejected"))
    release.set()
    await plain
    await turn.final_event()
    service.chat.check()
    assert sorted(await service.contents()) == ["Hello"] * 4


async def test_without_redis_the_model_answers_without_history(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await service.chat.answer(request("before"))
    service.batcher.is_down = True
    response = await service.chat.answer(request())
    assert (response.message, response.history_saved) == ("Hello", False)
    assert prompts(service)[1] == [("user", "Hello")]
    assert caplog.messages[0] == "answering without history: down"
    service.batcher.is_down = False
    assert await service.contents() == ["before", "Hello"]


async def test_both_messages_are_stored_if_redis_returns_before_the_answer(
    service: Service,
) -> None:
    service.batcher.failures = [1]
    response = await service.chat.answer(request())
    assert response.history_saved is True
    assert [message.id for message in await service.stored()] == [
        response.turn_id,
        response.message_id,
    ]


async def test_the_answer_to_a_deleted_session_is_not_stored(service: Service) -> None:
    async def delete() -> None:
        await service.history.clear_session("s")

    service.groq.before = delete
    response = await service.chat.answer(request())
    assert (response.message, response.history_saved) == ("Hello", False)
    assert await service.stored() == []


async def test_the_user_message_is_stored_if_the_completion_fails(service: Service) -> None:
    service.groq.error = CompletionRejected("no")
    with pytest.raises(CompletionRejected):
        await service.chat.answer(request("first"))
    assert await service.contents() == ["first"]
    assert service.batcher.calls == 2

    # Redis is unavailable before the failure and available after it.
    service.batcher.calls, service.batcher.failures = 0, [1]
    with pytest.raises(CompletionRejected):
        await service.chat.answer(request("second"))
    assert await service.contents() == ["first", "second"]


# A turn with events


async def test_a_turn_without_a_stream_has_a_start_and_a_done_event(service: Service) -> None:
    turn = await run_to_end(service, request())
    user_message, answer = await service.stored()
    assert (turn.id, turn.session_id, turn.is_shared) == (user_message.id, "s", False)
    assert events_of(turn) == [
        (
            "start",
            {
                "turn_id": user_message.id,
                "session_id": "s",
                "model": MODEL,
                "timestamp": user_message.timestamp,
            },
        ),
        (
            "done",
            {
                "message": "Hello",
                "model": ACTUAL_MODEL,
                "timestamp": answer.timestamp,
                "tokens_used": 12,
                "finish_reason": "length",
                "session_id": "s",
                "message_id": answer.id,
                "turn_id": user_message.id,
                "history_saved": True,
            },
        ),
    ]


@pytest.mark.parametrize(("reason", "expected"), [("length", "length"), (None, "stop")])
async def test_a_stream_has_an_event_for_each_part_of_the_answer(
    service: Service, reason: str | None, expected: str
) -> None:
    service.groq.finish_reason = reason
    turn = await run_to_end(service, request(stream=True))
    (start, *deltas, done) = events_of(turn)
    assert start[0] == "start"
    assert deltas == [("delta", {"text": "Hel"}), ("delta", {"text": "lo"})]
    _, answer = await service.stored()
    assert answer == Message(
        id=done[1]["message_id"],
        role="assistant",
        content="Hello",
        model=ACTUAL_MODEL,
        tokens=12,
        finish_reason=expected,
    )
    assert done == (
        "done",
        {
            "message": "Hello",
            "model": ACTUAL_MODEL,
            "timestamp": answer.timestamp,
            "tokens_used": 12,
            "finish_reason": expected,
            "session_id": "s",
            "message_id": answer.id,
            "turn_id": turn.id,
            "history_saved": True,
        },
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_the_answer_is_an_error_event(
    service: Service, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    service.groq.error = CompletionUnavailable("Groq is down")
    service.groq.texts = ()
    turn = await run_to_end(service, request(stream=stream))
    start, error = events_of(turn)
    assert start[0] == "start"
    assert error == (
        "error",
        {"code": "completion_unavailable", "type": "CompletionUnavailable"},
    )
    assert await service.contents() == ["Hello"]
    assert caplog.messages == [f"turn {turn.id}: completion_unavailable (Groq is down)"]


async def test_the_text_before_a_failure_is_stored_as_an_incomplete_answer(
    service: Service,
) -> None:
    service.groq.error = CompletionUnavailable("Groq is down")
    turn = await run_to_end(service, request(stream=True))
    assert [name for name, _ in events_of(turn)] == ["start", "delta", "delta", "error"]
    _, answer = await service.stored()
    assert (answer.content, answer.finish_reason, answer.status) == (
        "Hello",
        "error",
        "incomplete",
    )
    # The stream ended before the model's name and the tokens.
    assert (answer.model, answer.tokens) == (MODEL, None)


async def test_an_unexpected_error_is_logged_and_ends_the_turn_with_an_error_event(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.groq.error = ZeroDivisionError()
    turn = await run_to_end(service, request(stream=True))
    assert events_of(turn)[-1] == (
        "error",
        {"code": "internal_error", "type": "ZeroDivisionError"},
    )
    assert [name for name, _ in events_of(turn)].count("error") == 1
    (record,) = caplog.records
    assert (record.getMessage(), record.levelname) == (f"turn {turn.id} failed", "ERROR")
    assert record.exc_info is not None


async def stop_during_the_completion(
    service: Service, reason: Any, *, stream: bool, texts: Sequence[str]
) -> Turn:
    """Start a turn, stop it after these parts of its answer, and return it after its end."""
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    service.groq.texts = [*texts, "never sent"] if texts else []
    if texts:
        remaining = len(texts)

        async def hang_after_the_texts() -> None:
            nonlocal remaining
            remaining -= 1
            if not remaining:
                await hang()

        service.groq.after_part = hang_after_the_texts
    else:
        service.groq.before = hang
    turn = service.chat.start(request(stream=stream))
    await asyncio.wait_for(reached.wait(), 5)
    turn.stop(reason)
    await asyncio.wait_for(turn.final_event(), 5)
    return turn


@pytest.mark.parametrize("reason", ["stopped", "disconnected"])
async def test_a_stopped_stream_is_done_and_its_text_is_stored(
    service: Service, reason: str
) -> None:
    turn = await stop_during_the_completion(service, reason, stream=True, texts=["Hel", "lo"])
    name, done = events_of(turn)[-1]
    assert (name, done["message"], done["finish_reason"], done["status"]) == (
        "done",
        "Hello",
        "stopped",
        "incomplete",
    )
    _, answer = await service.stored()
    assert (answer.content, answer.finish_reason, answer.status) == (
        "Hello",
        "stopped",
        "incomplete",
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_that_is_stopped_before_its_answer_stores_no_answer(
    service: Service, *, stream: bool
) -> None:
    turn = await stop_during_the_completion(service, "stopped", stream=stream, texts=[])
    name, done = events_of(turn)[-1]
    (user_message,) = await service.stored()
    assert (name, done) == (
        "done",
        {
            "message": "",
            "model": MODEL,
            "timestamp": done["timestamp"],
            "tokens_used": None,
            "finish_reason": "stopped",
            "session_id": "s",
            "message_id": done["message_id"],
            "turn_id": user_message.id,
            "history_saved": True,
            "status": "incomplete",
        },
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_without_an_answer_stores_its_user_message_as_soon_as_redis_is_available(
    service: Service, *, stream: bool
) -> None:
    service.batcher.failures = [1]
    turn = await stop_during_the_completion(service, "stopped", stream=stream, texts=[])
    assert events_of(turn)[-1][1]["history_saved"] is True
    assert [message.id for message in await service.stored()] == [turn.id]


async def test_a_model_that_answers_with_no_text_has_an_empty_answer(service: Service) -> None:
    service.groq.texts = ()
    turn = await run_to_end(service, request(stream=True))
    assert events_of(turn)[-1][1]["message"] == ""
    assert await service.contents() == ["Hello", ""]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_shutdown_before_the_answer_is_an_error_event(
    service: Service, *, stream: bool
) -> None:
    turn = await stop_during_the_completion(service, "shutdown", stream=stream, texts=[])
    assert events_of(turn)[-1] == ("error", {"code": "shutting_down", "type": "ShuttingDown"})
    assert await service.contents() == ["Hello"]


async def test_a_shutdown_stores_the_text_so_far(service: Service) -> None:
    turn = await stop_during_the_completion(service, "shutdown", stream=True, texts=["Hel"])
    assert events_of(turn)[-1] == ("error", {"code": "shutting_down", "type": "ShuttingDown"})
    _, answer = await service.stored()
    assert (answer.content, answer.finish_reason, answer.status) == ("Hel", "error", "incomplete")


async def test_a_turn_whose_task_is_cancelled_ends_with_an_error_event(service: Service) -> None:
    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    service.groq.before = cancel
    turn = await run_to_end(service, request(stream=True))
    assert events_of(turn)[-1] == ("error", {"code": "shutting_down", "type": "ShuttingDown"})
    assert [name for name, _ in events_of(turn)] == ["start", "error"]


async def test_a_turn_whose_task_never_runs_ends_without_events(service: Service) -> None:
    before = asyncio.all_tasks()
    turn = service.chat.start(request(stream=True))
    (task,) = asyncio.all_tasks() - before
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert (turn.is_over, turn.events, len(service.limiter)) == (True, [], 0)


@pytest.mark.parametrize(("length", "is_too_long"), [(10, False), (11, True)])
async def test_an_answer_beyond_the_limit_ends_with_an_error(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    length: int,
    *,
    is_too_long: bool,
) -> None:
    monkeypatch.setattr(chat_module, "MAX_ANSWER_CHARS", 10)
    service.groq.texts = ["x" * 6, "y" * (length - 6)]
    turn = await run_to_end(service, request(stream=True))
    assert events_of(turn)[-1][0] == ("error" if is_too_long else "done")
    assert (await service.contents())[1] == ("x" * 6 if is_too_long else "x" * 6 + "y" * 4)
    expected = [f"turn {turn.id}: completion_unavailable (more than 10 characters)"]
    assert caplog.messages == (expected if is_too_long else [])


async def test_a_turn_is_available_to_followers_and_stop_requests(service: Service) -> None:
    turn = service.chat.start(request(stream=True))
    events = await service.turns.follow(turn.id)
    assert events is not None
    assert b"".join([each async for each in events]) == b"".join(turn.events)


# A repeated turn, under an Idempotency-Key


async def test_a_retry_uses_the_given_turn_and_session(service: Service) -> None:
    turn_id = new_message_id()
    turn = await run_to_end(service, request(session_id=None), turn_id=turn_id, session_id="given")
    assert (turn.id, turn.session_id, turn.is_shared) == (turn_id, "given", True)
    assert events_of(turn)[0][1]["session_id"] == "given"
    assert [message.id for message in await service.stored("given")] == [
        turn_id,
        events_of(turn)[-1][1]["message_id"],
    ]


async def test_a_retry_replaces_an_incomplete_answer(service: Service) -> None:
    turn_id = new_message_id()
    service.groq.error = CompletionUnavailable("Groq is down")
    await run_to_end(service, request(stream=True), turn_id=turn_id)
    service.groq.error, service.groq.texts = None, ("Complete",)
    await run_to_end(service, request(stream=True), turn_id=turn_id)
    assert await service.contents() == ["Hello", "Complete"]
    assert prompts(service) == [[("user", "Hello")]] * 2


async def test_without_redis_a_retry_may_repeat_the_incomplete_answer(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    turn_id = new_message_id()
    service.groq.error = CompletionUnavailable("Groq is down")
    await run_to_end(service, request(stream=True), turn_id=turn_id)
    service.groq.error, service.groq.texts = None, ("Complete",)
    service.batcher.calls, service.batcher.failures = 0, [1]
    caplog.clear()
    await run_to_end(service, request(stream=True), turn_id=turn_id)
    assert caplog.messages == ["the history may contain an incomplete answer twice: down"]
    assert await service.contents() == ["Hello", "Hello", "Complete"]


async def test_only_a_retry_looks_for_an_incomplete_answer(service: Service) -> None:
    await run_to_end(service, request())
    assert service.batcher.calls == 2
    await run_to_end(service, request(), turn_id=new_message_id())
    assert service.batcher.calls == 2 + 3


async def test_a_drain_rejects_new_turns(service: Service) -> None:
    await service.limiter.drain(0, lambda: None)
    for start in (service.chat.check, lambda: service.chat.start(request())):
        with pytest.raises(ShuttingDown):
            start()
    with pytest.raises(ShuttingDown):
        await service.chat.answer(request())
    assert service.groq.prompts == []
