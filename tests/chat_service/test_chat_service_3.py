"""The chat service: the messages, the response and the events of a turn, with each failure."""

import asyncio

import pytest

from groqchat.errors import (
    CompletionUnavailable,
    ShuttingDown,
)
from groqchat.services.turns import chat as chat_module
from groqchat.storage.message_ids import new_message_id
from tests.chat_service.conftest import (
    Service,
    events_of,
    prompts,
    request,
    run_to_end,
    stop_during_the_completion,
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
    assert caplog.messages == ["the incomplete answer of an earlier attempt was not removed: down"]
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
