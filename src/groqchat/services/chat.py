"""One turn of a conversation: context, completion, both messages saved."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from groqchat.errors import (
    CompletionError,
    CompletionUnavailable,
    GroqChatError,
    HistoryUnavailable,
    ShuttingDown,
    StorageError,
)
from groqchat.models import ChatAnswer, ChatRequest, StartEvent
from groqchat.services.admission import Admission
from groqchat.services.completions import Completion, Completions, Prompt
from groqchat.services.context import BYTES_PER_TOKEN, check_model, context_messages, prompt_for
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.services.stream_parser import StreamParser
from groqchat.services.turn import Turn
from groqchat.services.turns import Turns
from groqchat.settings import Settings
from groqchat.storage.messages import BROKEN, INCOMPLETE, STOPPED, Message, Spoken, new_message_id

# An answer is paid for: it gets a second chance, after the deadline of the first.
SAVE_ATTEMPTS = 2
# Longer than the longest answer of any model that Groq lists.
MAX_ANSWER_CHARS = 2_000_000

Complete: TypeAlias = Callable[[Prompt], Awaitable[Completion]]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Exchange:
    """A question and its session, and whether Redis has it."""

    session_id: str
    question: Message
    may_be_a_repetition: bool = False
    saved: bool = False


class ChatService:
    """Answers messages, whole or as they come.

    A turn that is answered whole runs in the task of its caller, which must not be cancelled when
    the client leaves: aiohttp's server runs each request in a task of its own and keeps to that.
    """

    def __init__(
        self,
        history: RedisChatService,
        completions: Completions,
        turns: Turns,
        admission: Admission,
        settings: Settings,
    ) -> None:
        self._history = history
        self._completions = completions
        self._turns = turns
        self._settings = settings
        self._admission = admission

    @property
    def is_configured(self) -> bool:
        """Whether there is a model to ask."""
        return self._completions.is_configured

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer a message and keep both, whether or not anybody still waits for it."""
        with self._admission:
            return await self._run(request, self._exchange(request), self._completions.complete)

    def check(self) -> None:
        """Raise ShuttingDown or Overloaded where no further turn may begin."""
        self._admission.check()

    def start(
        self, request: ChatRequest, *, turn_id: str | None = None, session_id: str | None = None
    ) -> Turn:
        """Begin a turn in a task of its own and return it, to be followed.

        One that is given its id may have been begun before, and others may follow it.
        """
        self._admission.check()
        exchange = self._exchange(request, turn_id=turn_id, session_id=session_id)
        turn = Turn(
            exchange.question.id, exchange.session_id, is_shared=exchange.may_be_a_repetition
        )
        task = asyncio.create_task(self._stream(request, exchange, turn))
        # Also of one that is cancelled before it begins.
        task.add_done_callback(lambda _: turn.end())
        self._admission.add(task)
        self._turns.add(turn)
        return turn

    async def _stream(self, request: ChatRequest, exchange: _Exchange, turn: Turn) -> None:
        """Run a turn and tell everything of it by events."""
        question = exchange.question
        try:
            start = StartEvent(
                turn_id=turn.id,
                session_id=turn.session_id,
                model=question.model,
                timestamp=question.timestamp,
            )
            turn.add("start", start.model_dump_json().encode())
            complete = self._relay if request.stream else self._wait
            answer = await self._run(request, exchange, partial(complete, turn))
            if turn.error is None:
                turn.add("done", answer.model_dump_json().encode())
            else:
                self._fail(turn, turn.error)
        except GroqChatError as error:
            self._fail(turn, error)
        except Exception as error:
            log.exception("turn %s failed", turn.id)
            turn.add("error", self._turns.describe(error))
        finally:
            if not turn.has_outcome:
                self._fail(turn, ShuttingDown())

    def _fail(self, turn: Turn, error: GroqChatError) -> None:
        log.warning("turn %s: %s (%s)", turn.id, error.code, error.detail)
        turn.add("error", self._turns.describe(error))

    async def _wait(self, turn: Turn, prompt: Prompt) -> Completion:
        """Return the model's whole answer; nothing of it where the turn is stopped."""
        async with turn.stoppable():
            return await self._completions.complete(prompt)
        failure = turn.failure()
        if failure is not None:
            raise failure
        return Completion(
            text="", model=prompt.model, tokens=None, finish_reason=STOPPED, is_whole=False
        )

    async def _relay(self, turn: Turn, prompt: Prompt) -> Completion:
        """Pass on the model's answer as it comes, and return what came of it."""
        parser = StreamParser(prompt.model)
        texts: list[str] = []
        size = 0
        try:
            async with turn.stoppable(), aclosing(self._completions.stream(prompt, parser)) as it:
                async for text in it:
                    size += len(text)
                    if size > MAX_ANSWER_CHARS:
                        raise CompletionUnavailable(f"more than {MAX_ANSWER_CHARS} characters")
                    texts.append(text)
                    turn.add("delta", {"text": text})
        except CompletionError as error:
            turn.error = error
        else:
            turn.error = turn.failure()
        if turn.error is not None and not texts:
            raise turn.error
        is_whole = turn.error is None and turn.stop_reason is None
        return Completion(
            text="".join(texts),
            model=parser.model,
            tokens=parser.tokens,
            finish_reason=_finish_reason(turn, parser),
            is_whole=is_whole,
        )

    def _exchange(
        self, request: ChatRequest, *, turn_id: str | None = None, session_id: str | None = None
    ) -> _Exchange:
        check_model(request.model, self._settings)
        return _Exchange(
            session_id=session_id or request.session_id or str(uuid.uuid4()),
            may_be_a_repetition=turn_id is not None,
            question=Message(
                id=turn_id or new_message_id(),
                role="user",
                content=request.message,
                model=request.model or self._settings.groq_default_model,
            ),
        )

    async def _run(
        self, request: ChatRequest, exchange: _Exchange, complete: Complete
    ) -> ChatAnswer:
        """Save the question, complete it, save what came of it."""
        question = exchange.question
        if exchange.may_be_a_repetition:
            await self._forget_attempt(exchange)
        context = context_messages(request, self._settings)
        earlier = await self._save_question(exchange, context)
        prompt = prompt_for(request, question, earlier, self._settings)
        try:
            completion = await complete(prompt)
        except (CompletionError, ShuttingDown):
            if not exchange.saved:
                await self._save(exchange, question)
            raise
        answer = _answer_message(completion)
        saved = await self._save_answer(exchange, answer)
        return ChatAnswer(
            message=answer.content,
            model=completion.model,
            timestamp=answer.timestamp,
            tokens_used=answer.tokens,
            finish_reason=completion.finish_reason,
            session_id=exchange.session_id,
            message_id=answer.id,
            turn_id=question.id,
            history_saved=saved,
            status=answer.status,
        )

    async def _forget_attempt(self, exchange: _Exchange) -> None:
        """Remove the beginning of an answer that an earlier attempt at the turn has left."""
        try:
            await self._history.drop_incomplete_answer(exchange.session_id, exchange.question)
        except StorageError as error:
            log.warning("an earlier attempt may show in the history: %s", error)

    async def _save_question(self, exchange: _Exchange, context: int) -> list[Spoken]:
        try:
            earlier = await self._history.save_message(
                exchange.session_id,
                exchange.question,
                context=context,
                context_bytes=self._settings.chat_context_tokens * BYTES_PER_TOKEN,
            )
        except StorageError as error:
            log.warning("answering without history: %s", error)
            return []
        exchange.saved = True
        return earlier

    async def _save_answer(self, exchange: _Exchange, answer: Message) -> bool:
        """Save an answer, its question too where that is missing.

        An answer that was cut before it began is none.
        """
        answers = [answer] if answer.content or not answer.status else []
        if not exchange.saved:
            return await self._save(exchange, exchange.question, *answers)
        return not answers or await self._save(exchange, *answers, question=exchange.question)

    async def _save(
        self, exchange: _Exchange, *messages: Message, question: Message | None = None
    ) -> bool:
        session_id = exchange.session_id
        for attempt in range(1, SAVE_ATTEMPTS + 1):
            try:
                await self._history.save_message(session_id, *messages, question=question)
            except StorageError as error:
                log.warning("save %d of session %s failed: %s", attempt, session_id, error)
                if not isinstance(error, HistoryUnavailable):
                    return False
            else:
                return True
        return False


def _finish_reason(turn: Turn, parser: StreamParser) -> str:
    if turn.error is not None:
        return BROKEN
    return STOPPED if turn.stop_reason else parser.finish_reason or "stop"


def _answer_message(completion: Completion) -> Message:
    return Message(
        id=new_message_id(),
        role="assistant",
        content=completion.text,
        model=completion.model,
        tokens=completion.tokens,
        finish_reason=completion.finish_reason,
        status=None if completion.is_whole else INCOMPLETE,
    )
