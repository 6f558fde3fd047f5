"""The chat service: the response to a message, and the messages that a turn stores."""

import asyncio
import uuid

import pytest

from groqchat.errors import (
    CompletionUnavailable,
    Overloaded,
    ShuttingDown,
    UnknownModel,
)
from groqchat.models import ChatResponse
from groqchat.services.groq.completions import Prompt
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message
from tests.support.turn_service import (
    ACTUAL_MODEL,
    MODEL,
    Service,
    prompts,
    request,
)


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


@pytest.mark.parametrize(("length", "count"), [(3_000, 21), (1_000, 60)])
async def test_the_token_budget_limits_how_much_of_a_long_context_is_read(
    service: Service, length: int, count: int
) -> None:
    long = [Message(id=new_message_id(), role="user", content="x" * length) for _ in range(60)]
    await service.history.save_messages("s", *long)
    service.batcher.calls = 0
    await service.chat.answer(request(context=1000))
    (prompt,) = service.groq.prompts
    assert len(prompt.messages) == count + 1
    # The budget of 16,000 tokens is 64,000 bytes. The first 50 messages are read with the first
    # write; the others only if these have fewer bytes.
    assert (service.batcher.calls == 2) is (50 * length >= 64_000)


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
    service.groq.error = CompletionUnavailable("no")
    with pytest.raises(CompletionUnavailable):
        await service.chat.answer(request("first"))
    assert await service.contents() == ["first"]
    assert service.batcher.calls == 2

    # Redis is unavailable before the failure and available after it.
    service.batcher.calls, service.batcher.failures = 0, [1]
    with pytest.raises(CompletionUnavailable):
        await service.chat.answer(request("second"))
    assert await service.contents() == ["first", "second"]


async def test_a_drain_rejects_new_turns(service: Service) -> None:
    await service.limiter.drain(0, lambda: None)
    for start in (service.chat.check, lambda: service.chat.start(request())):
        with pytest.raises(ShuttingDown):
            start()
    with pytest.raises(ShuttingDown):
        await service.chat.answer(request())
    assert service.groq.prompts == []
