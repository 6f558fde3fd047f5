"""The chat service: the events of a turn, its failures, stops and repeated attempts."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from groqchat.errors import CompletionUnavailable
from groqchat.services.turns import turn_completion
from groqchat.services.turns.turn import Turn
from groqchat.storage.messages import Message
from tests.support.turn_service import (
    ACTUAL_MODEL,
    MODEL,
    Service,
    events_of,
    request,
    run_to_end,
)


async def test_a_turn_without_a_stream_has_a_start_and_a_done_event(service: Service) -> None:
    turn = await run_to_end(service, request())
    user_message, answer = await service.stored()
    assert (turn.id, turn.session_id, turn.claim) == (user_message.id, "s", None)
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


async def test_a_turn_whose_task_never_runs_ends_with_an_error_event(service: Service) -> None:
    before = asyncio.all_tasks()
    turn = service.chat.start(request(stream=True))
    (task,) = asyncio.all_tasks() - before
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert events_of(turn) == [("error", {"code": "shutting_down", "type": "ShuttingDown"})]
    assert (turn.is_over, turn.has_outcome, len(service.limiter)) == (True, True, 0)


@pytest.mark.parametrize(("length", "is_too_long"), [(10, False), (11, True)])
async def test_an_answer_beyond_the_limit_ends_with_an_error(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    length: int,
    *,
    is_too_long: bool,
) -> None:
    monkeypatch.setattr(turn_completion, "MAX_ANSWER_CHARS", 10)
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
