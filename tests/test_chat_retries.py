"""The chat service: further attempts at the turn of an Idempotency-Key."""

from dataclasses import replace

from groqchat.errors import CompletionUnavailable
from groqchat.storage.claims import claim_turn
from groqchat.storage.message_ids import earlier_id, new_message_id
from tests.support.turn_service import (
    Service,
    events_of,
    prompts,
    request,
    run_to_end,
)
from tests.support.turn_workers import RECORD_VALUE, new_claim


async def test_a_retry_uses_the_given_turn_and_session(service: Service) -> None:
    claim = new_claim()
    turn_id = claim.turn_id
    turn = await run_to_end(service, request(session_id=None), claim=claim, session_id="given")
    assert (turn.id, turn.session_id, turn.claim) == (turn_id, "given", claim)
    assert events_of(turn)[0][1]["session_id"] == "given"
    assert [message.id for message in await service.stored("given")] == [
        turn_id,
        events_of(turn)[-1][1]["message_id"],
    ]


async def test_a_retry_replaces_an_incomplete_answer(service: Service) -> None:
    claim = new_claim()
    service.groq.error = CompletionUnavailable("Groq is down")
    await run_to_end(service, request(stream=True), claim=claim)
    service.groq.error, service.groq.texts = None, ("Complete",)
    await run_to_end(service, request(stream=True), claim=replace(claim, attempt=1))
    assert await service.contents() == ["Hello", "Complete"]
    assert prompts(service) == [[("user", "Hello")]] * 2


async def test_a_retry_that_cannot_look_for_an_earlier_answer_fails(service: Service) -> None:
    claim = new_claim()
    service.groq.error = CompletionUnavailable("Groq is down")
    await run_to_end(service, request(stream=True), claim=claim)
    service.groq.error, service.groq.texts = None, ("Complete",)
    service.batcher.calls, service.batcher.failures = 0, [1]
    turn = await run_to_end(service, request(stream=True), claim=replace(claim, attempt=1))
    error = {"code": "history_unavailable", "type": "HistoryUnavailable"}
    assert events_of(turn)[1:] == [("error", error)]
    assert await service.contents() == ["Hello", "Hello"]
    assert len(service.groq.prompts) == 1


async def test_only_a_retry_looks_for_an_incomplete_answer(service: Service) -> None:
    await run_to_end(service, request())
    assert service.batcher.calls == 2
    claim = new_claim()
    await service.batcher.transact(
        [("SET", claim.record_key, RECORD_VALUE), claim_turn(claim.turn_id, claim.token)]
    )
    service.batcher.calls = 0
    await run_to_end(service, request(), claim=claim)
    assert service.batcher.calls == 2
    service.batcher.calls = 0
    await run_to_end(service, request(), claim=replace(claim, attempt=1))
    assert service.batcher.calls == 1


async def test_an_answer_follows_a_question_of_a_worker_whose_clock_is_ahead(
    service: Service,
) -> None:
    claim = new_claim(earlier_id(new_message_id(), -86_400_000_000))
    await run_to_end(service, request(), claim=claim)
    assert [message.role for message in await service.stored()] == ["user", "assistant"]
