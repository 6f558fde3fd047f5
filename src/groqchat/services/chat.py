"""One turn of a conversation: context, completion, both messages saved."""

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from groqchat.errors import (
    CompletionError,
    HistoryUnavailable,
    Overloaded,
    ShuttingDown,
    StorageError,
)
from groqchat.models import ChatAnswer, ChatRequest
from groqchat.services.completions import Completion, Completions, Prompt
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.settings import Settings
from groqchat.storage.messages import Message, Spoken, new_message_id

# Groq's tokenizers make a token of about four bytes of English, and of fewer elsewhere.
BYTES_PER_TOKEN = 4
# Role and separators around each message.
TOKENS_PER_MESSAGE = 4
# What a model takes as a conversation without further fields; a tool's answer needs its call.
CONTEXT_ROLES = frozenset({"system", "user", "assistant"})
# A turn that is full up is retried by whoever sent it; by then some of the others are done.
OVERLOADED_RETRY_AFTER_S = 1.0
# An answer is paid for: it gets a second chance, after the deadline of the first.
SAVE_ATTEMPTS = 2
# redis-py swallows a cancellation that meets a finished send, so one may not be enough.
CANCEL_ATTEMPTS = 5
CANCEL_WAIT_S = 0.5

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Turn:
    """A turn under way: what was asked, and whether Redis has it."""

    session_id: str
    question: Message
    saved: bool = False


class ChatService:
    """Answers messages.

    A turn runs in the task of its caller, which must not be cancelled when the client leaves:
    aiohttp's server runs each request in a task of its own and keeps to that.
    """

    def __init__(
        self, history: RedisChatService, completions: Completions, settings: Settings
    ) -> None:
        self._history = history
        self._completions = completions
        self._settings = settings
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()
        self._stopping = False

    @property
    def is_configured(self) -> bool:
        """Whether there is a model to ask."""
        return self._completions.is_configured

    @property
    def in_flight(self) -> int:
        """The number of turns under way."""
        return len(self._tasks)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Answer a message and keep both, whether or not anybody still waits for it."""
        if self._stopping:
            raise ShuttingDown
        if len(self._tasks) >= self._settings.max_turns_in_flight:
            raise Overloaded(retry_after_s=OVERLOADED_RETRY_AFTER_S)
        task = self._current_task()
        self._tasks.add(task)
        try:
            return await self._answer(request)
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            raise ShuttingDown from None
        finally:
            self._tasks.discard(task)
            self._ended.discard(task)

    async def drain(self) -> None:
        """Take no further turn, let those under way end within the grace time, cancel the rest."""
        self._stopping = True
        if not self._tasks:
            return
        log.info("waiting for %d turn(s) to end", len(self._tasks))
        _, late = await asyncio.wait(self._tasks, timeout=self._settings.shutdown_grace_s)
        if late:
            log.warning("ending %d turn(s) that outlasted the grace time", len(late))
        for _ in range(CANCEL_ATTEMPTS):
            if not late:
                return
            for task in late & self._tasks:
                self._ended.add(task)
                task.cancel()
            _, late = await asyncio.wait(late, timeout=CANCEL_WAIT_S)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop; to ask which one runs is a system call in Python 3.11."""
        return asyncio.get_running_loop()

    def _current_task(self) -> asyncio.Task[Any]:
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a turn runs in a task")
        return task

    async def _answer(self, request: ChatRequest) -> ChatAnswer:
        turn = _Turn(
            session_id=request.session_id or str(uuid.uuid4()),
            question=Message(
                id=new_message_id(),
                role="user",
                content=request.message,
                model=request.model or self._settings.groq_default_model,
            ),
        )
        earlier = await self._save_question(turn, self._context_of(request))
        try:
            completion = await self._completions.complete(self._prompt(request, turn, earlier))
        except CompletionError:
            if not turn.saved:
                await self._save(turn, turn.question)
            raise
        answer = _answer_message(completion)
        unsaved = [answer] if turn.saved else [turn.question, answer]
        saved = await self._save(turn, *unsaved, question=turn.question if turn.saved else None)
        return ChatAnswer(
            message=answer.content,
            model=completion.model,
            timestamp=answer.timestamp,
            tokens_used=answer.tokens,
            finish_reason=completion.finish_reason,
            session_id=turn.session_id,
            message_id=answer.id,
            history_saved=saved,
        )

    def _context_of(self, request: ChatRequest) -> int:
        asked = request.context
        # A session that is only now given its name has no earlier messages.
        if request.session_id is None:
            return 0
        return self._settings.chat_context_messages if asked is None else asked

    async def _save_question(self, turn: _Turn, context: int) -> list[Spoken]:
        try:
            earlier = await self._history.save_message(
                turn.session_id, turn.question, context=context
            )
        except StorageError as error:
            log.warning("answering without history: %s", error)
            return []
        turn.saved = True
        return earlier

    async def _save(self, turn: _Turn, *messages: Message, question: Message | None = None) -> bool:
        for attempt in range(1, SAVE_ATTEMPTS + 1):
            try:
                await self._history.save_message(turn.session_id, *messages, question=question)
            except StorageError as error:
                log.warning("save %d of session %s failed: %s", attempt, turn.session_id, error)
                if not isinstance(error, HistoryUnavailable):
                    return False
            else:
                return True
        return False

    def _prompt(self, request: ChatRequest, turn: _Turn, earlier: Sequence[Spoken]) -> Prompt:
        options = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_completion_tokens": request.max_completion_tokens,
        }
        return Prompt(
            model=turn.question.model or self._settings.groq_default_model,
            messages=[
                *within_budget(earlier, self._settings.chat_context_tokens),
                {"role": "user", "content": turn.question.content},
            ],
            system_prompt=request.system_prompt,
            options={name: value for name, value in options.items() if value is not None},
        )


def within_budget(earlier: Sequence[Spoken], tokens: int) -> Sequence[Spoken]:
    """Return the latest messages that fit an estimated number of tokens, in order."""
    kept: list[Spoken] = []
    for message in reversed(earlier):
        content = message["content"]
        if not content or message["role"] not in CONTEXT_ROLES:
            continue
        size = len(content) if content.isascii() else len(content.encode())
        tokens -= size // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
        if tokens < 0:
            break
        kept.append(message)
    return kept[::-1]


def _answer_message(completion: Completion) -> Message:
    return Message(
        id=new_message_id(),
        role="assistant",
        content=completion.text,
        model=completion.model,
        tokens=completion.tokens,
        finish_reason=completion.finish_reason,
    )
