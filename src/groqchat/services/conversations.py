"""Sessions of clients that speak Groq's wire format: their messages as they were sent."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from groqchat.errors import InvalidField, StorageError
from groqchat.services.redis_chat_service import MAX_PAGE, RedisChatService
from groqchat.services.wire_messages import (
    INSTRUCTION_ROLES,
    WireMessage,
    is_repeated,
    is_whole,
    on_wire,
    overlap,
    stored,
    with_whole_calls,
    within_budget,
)
from groqchat.settings import Settings
from groqchat.storage.messages import INCOMPLETE, ROLES, Message

# The calls of tools that a request answers, and the question before them, lie no further back.
CALLS_WITHIN = 100
# An answer is paid for: it gets a second chance.
SAVE_ATTEMPTS = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the model is given, what of it is new, and whether that is kept.

    `question` is the message that the answer follows.
    """

    session_id: str
    messages: list[WireMessage]
    new: Sequence[Message] = ()
    question: Message | None = None


class Conversations:
    """Puts what was said before in front of a request, and keeps what is new."""

    def __init__(self, history: RedisChatService, settings: Settings) -> None:
        self._history = history
        self._settings = settings

    async def begin(self, session_id: str, asked: object, model: str | None) -> Conversation:
        """Return the whole conversation; InvalidField where the messages are none.

        Where Redis cannot be read it is what was sent.
        """
        sent = _checked(asked)
        instructions = [message for message in sent if message["role"] in INSTRUCTION_ROLES]
        said = [message for message in sent if message["role"] not in INSTRUCTION_ROLES]
        try:
            earlier = await self._earlier(session_id, said)
        except StorageError as error:
            log.warning("answering without history: %s", error)
            return Conversation(session_id=session_id, messages=sent)
        known, begin = overlap(_on_wire(earlier), said)
        before = with_whole_calls(self._fitting(earlier[:begin], said), said)
        messages = [*instructions, *before, *said]
        new = [stored(message, model) for message in said[known:]]
        try:
            if new:
                await self._history.save_message(session_id, *new)
        except StorageError as error:
            log.warning("answering what is not kept: %s", error)
            return Conversation(session_id=session_id, messages=messages)
        question = [*earlier, *new][-1] if said else None
        return Conversation(session_id=session_id, messages=messages, new=new, question=question)

    async def end(self, conversation: Conversation, answer: Message) -> bool:
        """Keep an answer, and return whether the whole exchange is kept."""
        if conversation.question is None:
            return False
        if answer.status == INCOMPLETE and not answer.content:
            return True
        for attempt in range(1, SAVE_ATTEMPTS + 1):
            try:
                await self._history.save_message(
                    conversation.session_id, answer, question=conversation.question
                )
            except StorageError as error:
                session_id = conversation.session_id
                log.warning("save %d of session %s failed: %s", attempt, session_id, error)
            else:
                return True
        return False

    async def take_back(self, conversation: Conversation) -> None:
        """Forget what was new in a request that Groq has refused: it would refuse it again."""
        if not conversation.new:
            return
        try:
            await self._history.remove_messages(conversation.session_id, conversation.new)
        except StorageError as error:
            log.warning("what Groq refused stays in the history: %s", error)

    async def _earlier(self, session_id: str, said: Sequence[WireMessage]) -> list[Message]:
        """Return the latest messages, as many as are needed to tell what is new.

        Without the beginning of an answer that broke off, where the same is asked again.
        """
        # One more than was sent: an answer to it may have broken off.
        count = max(self._settings.chat_context_messages, len(said) + 1)
        if said and said[0]["role"] == "tool":
            count = max(count, CALLS_WITHIN)
        page = await self._history.get_session_history(session_id, limit=min(count, MAX_PAGE))
        if page.has_more and is_whole(said) and not overlap(_on_wire(page.messages), said).known:
            # It begins further back, and goes on otherwise.
            page = await self._history.get_session_history(session_id, limit=MAX_PAGE)
        earlier = page.messages
        if earlier and earlier[-1].status == INCOMPLETE:
            before = _on_wire(earlier[:-1])
            if said and is_repeated(before, said):
                await self._history.remove_messages(session_id, earlier[-1:])
                return earlier[:-1]
        return earlier

    def _fitting(
        self, earlier: Sequence[Message], said: Sequence[WireMessage]
    ) -> list[WireMessage]:
        count = self._settings.chat_context_messages
        messages = _on_wire(earlier)
        needed = bool(said) and said[0]["role"] == "tool"
        return within_budget(
            messages, messages=count, tokens=self._settings.chat_context_tokens, needed=needed
        )


def _on_wire(messages: Sequence[Message]) -> list[WireMessage]:
    return [on_wire(message) for message in messages]


def _checked(asked: object) -> list[WireMessage]:
    if not isinstance(asked, list) or not asked:
        raise InvalidField(message="messages: must be a list of messages", param="messages")
    for at, message in enumerate(asked):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES.keys() | INSTRUCTION_ROLES:
            raise InvalidField(
                message=f"messages.{at}: has no role that can be kept", param=f"messages.{at}.role"
            )
        for name, is_good in (("tool_calls", _are_calls), ("tool_call_id", _is_id)):
            if not is_good(message.get(name)):
                param = f"messages.{at}.{name}"
                raise InvalidField(message=f"{param}: is not what it has to be", param=param)
    return asked


def _are_calls(value: object) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(call, dict) and _is_id(call.get("id")) for call in value)
    )


def _is_id(value: object) -> bool:
    return value is None or isinstance(value, str)
