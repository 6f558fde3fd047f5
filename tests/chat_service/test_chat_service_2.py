"""The chat service: the messages, the response and the events of a turn, with each failure."""

import pytest

from groqchat.errors import (
    CompletionUnavailable,
)
from groqchat.storage.messages import Message
from tests.chat_service.conftest import (
    ACTUAL_MODEL,
    MODEL,
    Service,
    events_of,
    request,
    run_to_end,
    stop_during_the_completion,
)


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
