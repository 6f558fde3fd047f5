"""The chat service: runs a turn, which reads the context, asks Groq and stores both messages."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from groqchat.errors import (
    REJECTIONS,
    CompletionError,
    GroqChatError,
    SessionCleared,
    ShuttingDown,
    StorageError,
    TurnLost,
)
from groqchat.models import ChatRequest, ChatResponse, StartEvent
from groqchat.retry import WaitBudget
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import Completion, Prompt
from groqchat.services.history_store import HistoryStore
from groqchat.services.turns.context import (
    BYTES_PER_TOKEN,
    build_prompt,
    context_limit,
    read_fallbacks,
    without_repetitions,
)
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.turn import Turn
from groqchat.services.turns.turn_completion import complete_turn, stream_turn
from groqchat.settings import Settings
from groqchat.storage.claims import Claim
from groqchat.storage.message_ids import answer_id, new_message_id
from groqchat.storage.messages import (
    INCOMPLETE,
    UNSTORED_FINISH_REASON,
    UNSTORED_MODEL,
    Message,
    PromptMessage,
)
from groqchat.storage.retained_messages import replacement


class Complete(Protocol):
    """A function that asks the model."""

    def __call__(self, prompt: Prompt, *, timeout_s: float = ...) -> Awaitable[Completion]:
        """Return the answer within `timeout_s`, by default within GROQ_TIMEOUT_S."""


log = logging.getLogger(__name__)


@dataclass(slots=True)
class _TurnState:
    """The user message of a turn, and what earlier attempts with its `claim` have stored."""

    session_id: str
    user_message: Message
    budget: WaitBudget
    claim: Claim | None = None
    is_stored: bool = False
    incomplete_answers: Sequence[Message] = ()


class ChatService:
    """Runs turns: `answer` in the task of its request, `start` in a task of its own.

    A turn that `start` runs has events, whether or not its completion is streamed. The task of a
    request is not cancelled when the client disconnects (`handler_cancellation=False`), so the
    answer is stored then too.
    """

    def __init__(
        self,
        *,
        history: HistoryStore,
        groq: GroqClient,
        turns: TurnRegistry,
        limiter: TurnLimiter,
        settings: Settings,
    ) -> None:
        self._history = history
        self._groq = groq
        self._turns = turns
        self._limiter = limiter
        self._settings = settings

    @property
    def is_configured(self) -> bool:
        """Whether completions are available: an API key is set, or the mock Groq server runs."""
        return self._groq.is_configured

    async def answer(self, request: ChatRequest) -> ChatResponse:
        """Answer a user message and store both messages, even if the client disconnects."""
        with self._limiter:
            return await self._run(request, self._new_state(request), self._groq.complete)

    def check(self) -> None:
        """Raise ShuttingDown or Overloaded if the current task may not start a turn."""
        self._limiter.check_turn()

    def start(
        self, request: ChatRequest, *, claim: Claim | None = None, session_id: str | None = None
    ) -> Turn:
        """Start a turn in a task of its own and return it.

        With a `claim`, an earlier request may have run the turn already, and other clients may
        follow its events.
        """
        self._limiter.check_turn()
        state = self._new_state(request, claim=claim, session_id=session_id)
        turn = Turn(state.user_message.id, state.session_id, claim=claim)
        task = asyncio.create_task(self._run_with_events(request, state, turn))
        # A done callback also runs if the task is cancelled before its first step.
        task.add_done_callback(lambda _: self._end(turn))
        self._limiter.add(task)
        self._turns.add(turn)
        return turn

    def _new_state(
        self, request: ChatRequest, *, claim: Claim | None = None, session_id: str | None = None
    ) -> _TurnState:
        self._groq.check_model(request.model)
        return _TurnState(
            session_id=session_id or request.session_id or str(uuid.uuid4()),
            budget=WaitBudget(self._settings.redis_timeout_s),
            claim=claim,
            user_message=Message(
                id=claim.turn_id if claim else new_message_id(),
                role="user",
                content=request.message,
                model=request.model or self._settings.groq_default_model,
            ),
        )

    async def _run_with_events(self, request: ChatRequest, state: _TurnState, turn: Turn) -> None:
        """Run a turn and add its events."""
        try:
            start = StartEvent(
                turn_id=turn.id,
                session_id=turn.session_id,
                model=state.user_message.model,
                timestamp=state.user_message.timestamp,
            )
            turn.add("start", start.model_dump_json().encode())
            response = await self._repeated_answer(state, turn)
            if response is None:
                complete = stream_turn if request.stream else complete_turn
                timeout_s = self._settings.groq_timeout_s
                ask = partial(complete, self._groq, turn, timeout_s=timeout_s)
                response = await self._run(request, state, ask)
            turn.is_incomplete = response.status == INCOMPLETE
            if turn.error is None:
                turn.add("done", response.model_dump_json().encode())
            else:
                self._add_error(turn, turn.error)
        except TurnLost:
            turn.supersede()
        except GroqChatError as error:
            self._add_error(turn, error)
        except Exception as error:
            log.exception("turn %s failed", turn.id)
            turn.add("error", self._turns.encode_error(error))

    def _end(self, turn: Turn) -> None:
        """Mark the end of a turn, which has no outcome yet if it was cancelled early."""
        if not (turn.has_outcome or turn.is_superseded):
            self._add_error(turn, ShuttingDown())
        turn.end()

    def _add_error(self, turn: Turn, error: GroqChatError) -> None:
        log.warning("turn %s: %s (%s)", turn.id, error.code, error.detail)
        turn.add("error", self._turns.encode_error(error))

    async def _run(
        self, request: ChatRequest, state: _TurnState, complete: Complete
    ) -> ChatResponse:
        """Store the user message, complete the prompt, store the answer."""
        earlier = await self._store_user_message(request, state)
        ends_at_s = time.monotonic() + self._settings.groq_timeout_s
        build = partial(build_prompt, request, state.user_message, settings=self._settings)
        try:
            prompt = build(earlier)
            try:
                completion = await complete(prompt)
            except REJECTIONS:
                contexts = await self._read_fallbacks(state, earlier)
                prompts = without_repetitions(prompt, map(build, contexts))
                if not prompts:
                    raise
                completion = await _complete_any(prompts, complete, ends_at_s=ends_at_s)
        except REJECTIONS:
            await self._history.try_remove(
                state.session_id,
                state.user_message,
                *state.incomplete_answers,
                claim=state.claim,
                max_wait_s=state.budget.left_s,
                is_stored=state.is_stored,
            )
            raise
        except (CompletionError, ShuttingDown):
            with suppress(SessionCleared):
                await self._store_answer(state)
            raise
        answer = _answer_message(completion, state)
        try:
            is_saved = await self._store_answer(state, answer)
        except SessionCleared:
            is_saved = False
        return _response(state, answer, is_saved=is_saved)

    async def _read_fallbacks(
        self, state: _TurnState, earlier: Sequence[PromptMessage]
    ) -> Sequence[Sequence[PromptMessage]]:
        """Return contexts without messages that have no answer.

        One of them can be the reason for a rejection. Groq would reject every turn of the session.
        """
        with state.budget:
            max_wait_s = state.budget.left_s or self._settings.redis_timeout_s
            own = self._history, state.session_id, state.user_message
            return await read_fallbacks(*own, earlier, max_wait_s=max_wait_s)

    async def _repeated_answer(self, state: _TurnState, turn: Turn) -> ChatResponse | None:
        """Return the answer that an earlier attempt at the turn has stored, None if it has none."""
        claim = state.claim
        if claim is None or not claim.attempt:
            return None
        with state.budget:
            stored = await self._history.find_turn(state.session_id, [claim.turn_id], claim)
        answer = next((each for each in stored.answers if not each.status), None)
        if answer is None:
            state.incomplete_answers = stored.answers
            return None
        turn.add_text(answer.content)
        return _response(state, answer, is_saved=True)

    async def _store_user_message(
        self, request: ChatRequest, state: _TurnState
    ) -> list[PromptMessage]:
        """Store the user message and return the earlier messages; none if Redis fails."""
        try:
            with state.budget:
                earlier = await self._history.save_messages(
                    state.session_id,
                    state.user_message,
                    context=context_limit(request, self._settings),
                    context_bytes=self._settings.chat_context_tokens * BYTES_PER_TOKEN,
                    claim=state.claim,
                    max_wait_s=state.budget.left_s,
                    turn_id=state.user_message.id,
                )
        except StorageError as error:
            log.warning("answering without history: %s", error)
            # After a deletion, the answer is not stored, because its user message is missing.
            state.is_stored = isinstance(error, SessionCleared)
            return []
        state.is_stored = True
        return earlier

    async def _store_answer(self, state: _TurnState, answer: Message | None = None) -> bool:
        """Store the answer, if there is one, and the user message if it is not stored yet.

        An empty answer that was cut short is not stored: nothing is missing then. Raises
        SessionCleared if the user message was deleted since, TurnLost if another attempt runs the
        turn.
        """
        answers = [answer] if answer and (answer.content or not answer.status) else []
        old = state.incomplete_answers
        replaced = (
            replacement(state.session_id, answers[0], old, state.claim) if old and answers else ()
        )
        if not state.is_stored:
            return await self._history.try_save(
                state.session_id,
                state.user_message,
                *answers,
                claim=state.claim,
                max_wait_s=state.budget.left_s,
                turn_id=state.user_message.id,
                more_commands=replaced,
            )
        return not answers or await self._history.try_save(
            state.session_id,
            *answers,
            user_message=state.user_message,
            claim=state.claim,
            max_wait_s=state.budget.left_s,
            more_commands=replaced,
        )


async def _complete_any(
    prompts: Sequence[Prompt], complete: Complete, *, ends_at_s: float
) -> Completion:
    """Complete the first prompt that Groq does not reject."""
    *others, last = prompts
    for prompt in others:
        with suppress(*REJECTIONS):
            return await complete(prompt, timeout_s=ends_at_s - time.monotonic())
    return await complete(last, timeout_s=ends_at_s - time.monotonic())


def _answer_message(completion: Completion, state: _TurnState) -> Message:
    return Message(
        id=answer_id(state.user_message.id),
        role="assistant",
        content=completion.text,
        model=completion.model,
        tokens=completion.tokens,
        finish_reason=completion.finish_reason,
        status=None if completion.is_complete else INCOMPLETE,
        turn_id=state.user_message.id if state.claim else None,
    )


def _response(state: _TurnState, answer: Message, *, is_saved: bool) -> ChatResponse:
    return ChatResponse(
        message=answer.content,
        model=answer.model or UNSTORED_MODEL,
        timestamp=answer.timestamp,
        tokens_used=answer.tokens,
        finish_reason=answer.finish_reason or UNSTORED_FINISH_REASON,
        session_id=state.session_id,
        message_id=answer.id,
        turn_id=state.user_message.id,
        history_saved=is_saved,
        status=answer.status,
    )
