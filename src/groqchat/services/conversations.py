"""Sessions of clients that speak Groq's wire format: their messages as they were sent."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from groqchat.errors import InvalidField, StorageError
from groqchat.services.context import BYTES_PER_TOKEN, TOKENS_PER_MESSAGE
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.settings import Settings
from groqchat.storage.messages import ROLES, Message, new_message_id

# They precede the conversation of this one request and are not kept.
INSTRUCTION_ROLES = frozenset({"system", "developer"})
# Of an answer, what a later request must repeat beside its text.
KEPT_OF_ANSWER = ("tool_calls",)

WireMessage: TypeAlias = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the model is given, and whether what is new in it is kept."""

    session_id: str
    messages: list[WireMessage]
    is_saved: bool


class Conversations:
    """Puts what was said before in front of a request, and keeps what is new."""

    def __init__(self, history: RedisChatService, settings: Settings) -> None:
        self._history = history
        self._settings = settings

    async def begin(self, session_id: str, asked: object, model: str | None) -> Conversation:
        """Return the whole conversation; InvalidField where the messages are none.

        Without Redis it is what was sent.
        """
        sent = _checked(asked)
        instructions = [message for message in sent if message["role"] in INSTRUCTION_ROLES]
        said = [message for message in sent if message["role"] not in INSTRUCTION_ROLES]
        try:
            earlier = await self._earlier(session_id)
            new = said[overlap(earlier, said) :]
            if new:
                await self._history.save_message(
                    session_id, *(_stored(message, model) for message in new)
                )
        except StorageError as error:
            log.warning("answering without history: %s", error)
            return Conversation(session_id=session_id, messages=sent, is_saved=False)
        kept = within_budget(earlier, self._settings.chat_context_tokens)
        messages = [*instructions, *(kept if new else kept[: -len(said)]), *(new or said)]
        return Conversation(session_id=session_id, messages=messages, is_saved=True)

    async def end(self, conversation: Conversation, answer: Message) -> bool:
        """Keep an answer, and return whether the whole exchange is kept."""
        if not conversation.is_saved:
            return False
        try:
            await self._history.save_message(conversation.session_id, answer)
        except StorageError as error:
            log.warning("an answer of session %s was not kept: %s", conversation.session_id, error)
            return False
        return True

    async def _earlier(self, session_id: str) -> list[WireMessage]:
        count = self._settings.chat_context_messages
        if not count:
            return []
        page = await self._history.get_session_history(session_id, limit=count)
        return [_on_wire(message) for message in page.messages]


def answer_message(
    message: WireMessage, *, model: str | None, tokens: int | None, finish_reason: str | None
) -> Message:
    """Return a completion's message as it is stored."""
    kept = {name: message[name] for name in KEPT_OF_ANSWER if message.get(name)}
    content = message.get("content")
    return Message(
        id=new_message_id(),
        role="assistant",
        content=content if isinstance(content, str) else "",
        model=model,
        tokens=tokens,
        finish_reason=finish_reason,
        extra=kept or None,
    )


def overlap(earlier: Sequence[WireMessage], said: Sequence[WireMessage]) -> int:
    """Return how many of the messages that a client sent are the last ones of its session.

    Many clients send the whole conversation each time, and send a request again that failed.
    """
    for count in range(min(len(earlier), len(said)), 0, -1):
        if list(earlier[-count:]) == list(said[:count]):
            return count
    return 0


def within_budget(earlier: Sequence[WireMessage], tokens: int) -> list[WireMessage]:
    """Return the latest messages that fit, from one of a user on: tools need their calls."""
    begin = len(earlier)
    for at in range(len(earlier) - 1, -1, -1):
        tokens -= _size(earlier[at]) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
        if tokens < 0:
            break
        if earlier[at]["role"] == "user":
            begin = at
    return list(earlier[begin:])


def _size(message: WireMessage) -> int:
    return sum(len(str(value).encode(errors="replace")) for value in message.values())


def _checked(asked: object) -> list[WireMessage]:
    if not isinstance(asked, list) or not asked:
        raise InvalidField(message="messages: must be a list of messages", param="messages")
    for at, message in enumerate(asked):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES.keys() | INSTRUCTION_ROLES:
            raise InvalidField(message=f"messages.{at}: has no role", param=f"messages.{at}.role")
    return asked


def _stored(message: WireMessage, model: str | None) -> Message:
    content = message.get("content")
    extra = {name: value for name, value in message.items() if name not in {"role", "content"}}
    if not isinstance(content, str):
        # In parts, or none: as it was sent beside what can be read of it.
        extra["content"] = content
    return Message(
        id=new_message_id(),
        role=ROLES[message["role"]],
        content=content if isinstance(content, str) else _text(content),
        model=model,
        extra=extra or None,
    )


def _text(content: object) -> str:
    """Return the text in a content of several parts."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _on_wire(message: Message) -> WireMessage:
    return {"role": message.role, "content": message.content, **(message.extra or {})}
