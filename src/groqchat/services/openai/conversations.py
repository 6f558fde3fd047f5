"""Conversations of the OpenAI-compatible endpoint: requests matched with a session's messages."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from msgspec import structs

from groqchat.errors import HistoryUnavailable, StorageError
from groqchat.fields import MAX_PAGE
from groqchat.retry import WaitBudget
from groqchat.services.history_store import HistoryStore
from groqchat.services.openai.messages import (
    INSTRUCTION_ROLES,
    OpenAIMessage,
    drop_unpaired_tool_calls,
    messages_of_calls,
    to_message,
    to_openai,
    trim_to_budget,
    with_calls_last,
)
from groqchat.services.openai.overlaps import (
    Match,
    find_overlap,
    is_repeated,
    is_transcript,
    match_session,
)
from groqchat.services.openai.request_body import validated_messages
from groqchat.settings import Settings
from groqchat.storage.claims import Claim
from groqchat.storage.errors import redis_errors
from groqchat.storage.exchanges import contexts, is_answer_to, name_messages
from groqchat.storage.history_reader import HistoryPage, StoredTurn
from groqchat.storage.message_ids import answer_id, earlier_id, new_message_id, new_message_ids
from groqchat.storage.messages import INCOMPLETE, Message, of_service
from groqchat.storage.retained_messages import replacement

# How far back the tool calls that a request answers, and their user message, may be.
MAX_TOOL_CALL_DISTANCE = 100

# How often the session is read again because another request has just removed messages.
MAX_READS = 3

NOTHING_STORED = StoredTurn(messages=[], answers=[])

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A request, the earlier messages of its session, and which messages are stored.

    `earlier` contains the session before the `request`, `later` the rest of it. `own`: what this
    request and earlier attempts at it have stored; `others`: the messages of other requests that it
    contains and that have no answer. `last_message` is the stored message that the answer follows,
    None if it is not stored. `budget` limits the time that the request waits for Redis. `since`: an
    id from its start. `claim` belongs to an Idempotency-Key. Earlier attempts may have stored a
    complete answer, `stored_answer`. The answer replaces `incomplete_answers`.
    """

    session_id: str
    request: list[OpenAIMessage]
    budget: WaitBudget
    earlier: Sequence[Message] = ()
    later: Sequence[Message] = ()
    own: Sequence[Message] = ()
    others: Sequence[Message] = ()
    last_message: Message | None = None
    since: str = field(default_factory=new_message_id)
    claim: Claim | None = None
    stored_answer: Message | None = None
    incomplete_answers: Sequence[Message] = ()


class _Session(NamedTuple):
    """A session, as far as it was read.

    `turn` was stored by earlier attempts. `replaced`: the incomplete answer that the new answer
    replaces. `is_whole`: no message precedes `earlier`.
    """

    earlier: list[Message]
    is_whole: bool
    replaced: list[Message]
    turn: StoredTurn


class Conversations:
    """Adds a session's earlier messages to a request and stores the new messages."""

    def __init__(self, history: HistoryStore, settings: Settings) -> None:
        self._history = history
        self._settings = settings

    async def begin(
        self, session_id: str, messages: object, model: str | None, *, claim: Claim | None = None
    ) -> Conversation:
        """Return the conversation of a request; raise InvalidField if `messages` is not valid.

        Raises TurnLost if another attempt than that of `claim` owns the turn. If the history cannot
        be read, the conversation contains only the request; a further attempt at a turn raises
        HistoryUnavailable, because an earlier one may have stored the answer.
        """
        request = validated_messages(messages)
        _, sent = _split(request)
        budget = WaitBudget(self._settings.redis_timeout_s)
        ids = _turn_ids(len(sent), claim)
        unread = Conversation(session_id=session_id, request=request, budget=budget, claim=claim)
        try:
            with budget:
                async with redis_errors(self._settings.redis_timeout_s):
                    session, match = await self._match(session_id, sent, ids, claim)
        except StorageError as error:
            if claim is not None and claim.attempt and isinstance(error, HistoryUnavailable):
                raise
            log.warning("answering without history: %s", error)
            return unread
        turn, ((known, begin), to_retain, last, parent) = session.turn, match
        new = _new_messages(sent, ids, model, known=known, stored=turn.messages)
        if new and parent is not None:
            new[0] = structs.replace(new[0], parent=parent)
        is_stored = not new or await self._store(session_id, new, last, claim, budget)
        stored = sorted([*turn.messages, *new], key=attrgetter("id"))
        incomplete = [each for each in turn.answers if each.status]
        return replace(
            unread,
            earlier=session.earlier[:begin],
            later=session.earlier[begin:],
            own=[*stored, *incomplete],
            others=[each for each in to_retain if not each.status],
            last_message=[last, *stored][-1] if is_stored else None,
            stored_answer=next((each for each in turn.answers if not each.status), None),
            incomplete_answers=[*session.replaced, *incomplete],
        )

    def prompts(self, conversation: Conversation) -> Iterator[list[OpenAIMessage]]:
        """Yield the messages for the model, then those to send if Groq rejects the ones before.

        Further prompts lack earlier messages that have no answer: one of them can be the reason.
        """
        request = conversation.request
        last = self._prompt(request, conversation.earlier)
        yield last
        _, sent = _split(request)
        needed = messages_of_calls(conversation.earlier, sent)
        for earlier in contexts(conversation.earlier, needed=needed, later=conversation.later):
            prompt = self._prompt(request, earlier)
            if prompt != last:
                yield prompt
                last = prompt

    def _prompt(
        self, request: Sequence[OpenAIMessage], earlier: Sequence[Message]
    ) -> list[OpenAIMessage]:
        """Return the system messages, the earlier messages that fit, and the other messages."""
        instructions, sent = _split(request)
        trimmed = trim_to_budget(
            with_calls_last([to_openai(message) for message in earlier], sent),
            messages=self._settings.chat_context_messages,
            tokens=self._settings.chat_context_tokens,
            needs_last_exchange=bool(sent) and sent[0]["role"] == "tool",
        )
        return [*instructions, *drop_unpaired_tool_calls(trimmed, sent), *sent]

    async def _match(
        self,
        session_id: str,
        sent: Sequence[OpenAIMessage],
        ids: Sequence[str],
        claim: Claim | None,
    ) -> tuple[_Session, Match]:
        """Compare a request with its session, and retain what they have in common."""
        before = ids[0] if ids else None
        for _ in range(MAX_READS):
            session = await self._read(session_id, sent, ids, claim)
            compare = partial(match_session, session.earlier, sent, is_whole=session.is_whole)
            match = compare(before=before)
            if not match.to_retain or await self._history.retain_messages(
                session_id, match.to_retain, claim
            ):
                return session, match
        # Other requests removed messages each time: none of those after the last answer is known.
        return session, compare(before="")

    async def _store(
        self,
        session_id: str,
        new: Sequence[Message],
        last: Message | None,
        claim: Claim | None,
        budget: WaitBudget,
    ) -> bool:
        """Store new messages if the one before them still exists; return whether Redis did."""
        try:
            with budget:
                await self._history.save_messages(
                    session_id,
                    *new,
                    user_message=of_service(last),
                    claim=claim,
                    max_wait_s=budget.left_s,
                    turn_id=new[0].id,
                )
        except StorageError as error:
            log.warning("answering messages that are not stored: %s", error)
            return False
        return True

    async def end(self, conversation: Conversation, answer: Message) -> bool:
        """Store an answer, and return whether it and the messages of the request are stored.

        An empty answer that was cut short need not be stored. Raises SessionCleared if the message
        that it answers was deleted since, TurnLost if another attempt owns the turn.
        """
        last = conversation.last_message
        if last is None:
            return False
        if answer.status == INCOMPLETE and not answer.content:
            return True
        claim = conversation.claim
        is_own = any(each is last for each in reversed(conversation.own))
        stored = structs.replace(
            answer,
            id=answer_id(last.id, is_own=is_own),
            turn_id=claim.message_id if claim else None,
            answers=name_messages(conversation.others) if conversation.others else (),
        )
        return await self._history.try_save(
            conversation.session_id,
            stored,
            user_message=of_service(last),
            turn_id=None if of_service(last) else conversation.since,
            claim=claim,
            max_wait_s=conversation.budget.left_s,
            more_commands=replacement(
                conversation.session_id, stored, conversation.incomplete_answers, claim
            )
            if conversation.incomplete_answers
            else (),
        )

    async def rollback(self, conversation: Conversation) -> None:
        """Remove what a rejected request and earlier attempts at it have stored."""
        if conversation.own:
            await self._history.try_remove(
                conversation.session_id,
                *conversation.own,
                claim=conversation.claim,
                max_wait_s=conversation.budget.left_s,
                is_stored=conversation.last_message is not None,
            )

    async def _read(
        self,
        session_id: str,
        sent: Sequence[OpenAIMessage],
        ids: Sequence[str],
        claim: Claim | None,
    ) -> _Session:
        """Return a session and what earlier attempts at the turn have stored in it."""
        turn, before = NOTHING_STORED, None
        if claim is not None and claim.attempt and ids:
            turn, before = await self._history.find_turn(session_id, ids, claim), ids[0]
        page = await self._read_page(session_id, sent, before)
        earlier = page.messages
        # An incomplete answer is replaced if the request repeats the messages before it.
        is_replaced = (
            len(earlier) > 1
            and not (ids and earlier[-2].id >= ids[0])
            and earlier[-1].status == INCOMPLETE
            and is_answer_to(earlier[-1], earlier[-2])
            and is_repeated(earlier[:-1], sent, is_whole=not page.has_more)
        )
        kept = earlier[:-1] if is_replaced else earlier
        return _Session(kept, not page.has_more, earlier[len(kept) :], turn)

    async def _read_page(
        self, session_id: str, sent: Sequence[OpenAIMessage], before: str | None
    ) -> HistoryPage:
        """Return the latest messages, as many as the comparison needs.

        With `before`, only the messages before this id: earlier attempts at the turn, and other
        turns since then, may have stored messages from there on.
        """
        # One more than the request has: the session may end with an incomplete answer.
        count = max(self._settings.chat_context_messages, len(sent) + 1)
        if sent and sent[0]["role"] == "tool":
            count = max(count, MAX_TOOL_CALL_DISTANCE)
        read = partial(self._history.get_history_page, session_id, before=before)
        page = await read(limit=min(count, MAX_PAGE))
        has_user = any(message.role == "user" for message in page.messages)
        if page.has_more and not has_user:
            # An agent can make calls for a long time. Their user message is a part of the prompt.
            page = await read(limit=MAX_PAGE)
        if page.has_more and is_transcript(sent):
            overlap = find_overlap(page.messages, sent, is_whole=False)
            if is_transcript(sent[overlap.known :]):
                # The transcript may start earlier in the session and diverge from it.
                page = await read(limit=MAX_PAGE)
        return page


def _split(request: Sequence[OpenAIMessage]) -> tuple[list[OpenAIMessage], list[OpenAIMessage]]:
    """Return the system messages of a request and the others."""
    instructions = [message for message in request if message["role"] in INSTRUCTION_ROLES]
    others = [message for message in request if message["role"] not in INSTRUCTION_ROLES]
    return instructions, others


def _turn_ids(count: int, claim: Claim | None) -> list[str]:
    """Return the ids of the messages of a keyed request, the same ones for each attempt.

    The last one is the id of the turn, as on `/chat`. Without a key, there are none.
    """
    if claim is None:
        return []
    return [earlier_id(claim.message_id, micros) for micros in range(count - 1, -1, -1)]


def _new_messages(
    sent: Sequence[OpenAIMessage],
    ids: Sequence[str],
    model: str | None,
    *,
    known: int,
    stored: Sequence[Message],
) -> list[Message]:
    """Return the messages after the first `known` ones, without those that are stored already.

    They get new ids if they have none.
    """
    if not ids:
        ids, sent = new_message_ids(len(sent) - known), sent[known:]
        pairs = zip(sent, ids, strict=True)
        return [to_message(each, model, message_id=message_id) for each, message_id in pairs]
    stored_ids = {message.id for message in stored}
    first = next((at for at, each in enumerate(ids) if each in stored_ids), known)
    return [
        to_message(message, model, message_id=message_id)
        for message, message_id in list(zip(sent, ids, strict=True))[min(known, first) :]
        if message_id not in stored_ids
    ]
