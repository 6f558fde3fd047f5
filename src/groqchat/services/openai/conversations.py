"""Conversations of the OpenAI-compatible endpoint: requests matched with a session's messages."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from groqchat.errors import HistoryUnavailable, StorageError
from groqchat.fields import MAX_PAGE
from groqchat.retry import WaitBudget
from groqchat.services.history_store import HistoryStore
from groqchat.services.openai.messages import (
    INSTRUCTION_ROLES,
    Match,
    OpenAIMessage,
    drop_unpaired_tool_calls,
    find_overlap,
    is_repeated,
    is_transcript,
    last_answer,
    match_session,
    to_message,
    to_openai,
    trim_to_budget,
    with_calls_last,
)
from groqchat.services.openai.request_body import validated_messages
from groqchat.settings import Settings
from groqchat.storage import keys
from groqchat.storage.claims import Claim
from groqchat.storage.errors import redis_errors
from groqchat.storage.history_reader import StoredTurn
from groqchat.storage.message_ids import MICROS_PER_S, earlier_id, new_message_id
from groqchat.storage.message_owners import OwnedMessages
from groqchat.storage.messages import INCOMPLETE, Message, remove_members

# How far back the tool calls that a request answers, and their user message, may be.
MAX_TOOL_CALL_DISTANCE = 100

# How often the session is read again because another request has just removed messages.
MAX_READS = 3

NOTHING_STORED = StoredTurn(messages=[], answers=[])

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The messages for the model, and which of them are new.

    `taken`: messages that another request or an earlier attempt has stored, and that this request
    owns now, as `request_id`. `last_message` is the stored message that the answer follows, None if
    it is not stored. `budget` limits the time that the request waits for Redis. `claim` belongs to
    an Idempotency-Key. Earlier attempts may have stored a complete answer, `stored_answer`, or
    incomplete ones, which the answer replaces.
    """

    session_id: str
    messages: list[OpenAIMessage]
    budget: WaitBudget
    new: Sequence[Message] = ()
    taken: Sequence[Message] = ()
    request_id: str = ""
    last_message: Message | None = None
    claim: Claim | None = None
    stored_answer: Message | None = None
    incomplete_answers: Sequence[Message] = ()


class _Session(NamedTuple):
    """A session, what earlier attempts have stored, and what the request has in common with it."""

    earlier: list[Message]
    turn: StoredTurn
    match: Match


class Conversations:
    """Adds a session's earlier messages to a request and stores the new messages."""

    def __init__(self, history: HistoryStore, settings: Settings) -> None:
        self._history = history
        self._settings = settings

    async def begin(
        self, session_id: str, messages: object, model: str | None, *, claim: Claim | None = None
    ) -> Conversation:
        """Return the conversation for the model; raise InvalidField if `messages` is not valid.

        Raises TurnLost if another attempt than that of `claim` owns the turn. If the history cannot
        be read, the conversation contains only the request's messages; a further attempt at a turn
        raises HistoryUnavailable, because an earlier one may have stored the answer.
        """
        request = validated_messages(messages)
        instructions = [message for message in request if message["role"] in INSTRUCTION_ROLES]
        sent = [message for message in request if message["role"] not in INSTRUCTION_ROLES]
        budget = WaitBudget(self._settings.redis_timeout_s)
        ids = _turn_ids(len(sent), claim)
        request_id = claim.message_id if claim else new_message_id()
        # If Redis replies too late, this request may own these messages nevertheless.
        pending: list[Message] = []
        unread = Conversation(
            session_id=session_id,
            messages=request,
            budget=budget,
            taken=pending,
            request_id=request_id,
            claim=claim,
        )
        try:
            with budget:
                async with redis_errors(self._settings.redis_timeout_s):
                    session = await self._match(session_id, sent, claim, request_id, pending)
        except StorageError as error:
            if claim is not None and claim.attempt and isinstance(error, HistoryUnavailable):
                raise
            log.warning("answering without history: %s", error)
            return unread
        earlier, turn, ((known, begin), unanswered, _, last) = session
        context = self._context(earlier[:begin], sent)
        new = _new_messages(sent, ids, model, known=known, stored=turn.messages)
        anchor = last_answer(earlier[begin:]) if known else None
        is_stored = not new or await self._store(session_id, new, anchor, claim, budget)
        own = sorted([*turn.messages, *new], key=attrgetter("id"))
        return replace(
            unread,
            messages=[*instructions, *context, *sent],
            new=new,
            taken=[*unanswered, *turn.messages],
            last_message=[last, *own][-1] if is_stored else None,
            stored_answer=next((each for each in turn.answers if not each.status), None),
            incomplete_answers=[each for each in turn.answers if each.status],
        )

    async def _match(
        self,
        session_id: str,
        sent: Sequence[OpenAIMessage],
        claim: Claim | None,
        request_id: str,
        pending: list[Message],
    ) -> _Session:
        """Compare a request with its session, and take over messages of other requests."""
        ids = _turn_ids(len(sent), claim)
        longest = int(self._settings.groq_timeout_s * MICROS_PER_S)
        since, before = earlier_id(request_id, longest), ids[0] if ids else None
        for reads in range(1, MAX_READS + 1):
            (earlier, size), turn = await self._read(session_id, sent, ids, claim)
            match = match_session(earlier, sent, since=since, before=before)
            is_last_read = reads == MAX_READS
            if turn.precedes_others or is_last_read:
                # An answer that was stored since may belong to a message that seems to have none.
                retained = [*match.retained, *match.unanswered]
                match = match._replace(unanswered=[], retained=retained)
            owned = [
                OwnedMessages(request_id, match.unanswered),
                OwnedMessages(keys.ANSWERED, match.retained),
            ]
            expected = None if is_last_read else size
            take_over = partial(self._history.owners.take_over, session_id, owned, claim)
            pending[:] = match.unanswered
            is_needed = match.unanswered or match.retained
            if not is_needed or await take_over(session_size=expected):
                return _Session(earlier, turn, match)
        # Other requests removed messages each time. With this `before`, none of them is known.
        match = match_session(earlier, sent, since=since, before="")
        return _Session(earlier, turn, match._replace(unanswered=[]))

    async def _store(
        self,
        session_id: str,
        new: Sequence[Message],
        anchor: Message | None,
        claim: Claim | None,
        budget: WaitBudget,
    ) -> bool:
        """Store new messages if the one before them still exists; return whether Redis did."""
        try:
            with budget:
                await self._history.save_messages(
                    session_id,
                    *new,
                    user_message=anchor,
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
        if conversation.last_message is None:
            return False
        if answer.status == INCOMPLETE and not answer.content:
            return True
        claim = conversation.claim
        if claim is not None:
            answer = replace(answer, turn_id=claim.message_id)
        if answer.id < conversation.last_message.id:
            answer = replace(answer, id=new_message_id(after=conversation.last_message.id))
        return await self._history.try_save(
            conversation.session_id,
            answer,
            user_message=conversation.last_message,
            owned=[
                each
                for each in (*conversation.taken, *conversation.new)
                # A complete answer may have replaced an incomplete one.
                if each is not conversation.last_message and each.role != "assistant"
            ],
            claim=claim,
            max_wait_s=conversation.budget.left_s,
            extra_commands=remove_members(
                keys.session_key(conversation.session_id), conversation.incomplete_answers
            ),
        )

    async def rollback(self, conversation: Conversation) -> None:
        """Remove the messages that a rejected request owns."""
        removed = [*conversation.incomplete_answers, *conversation.new, *conversation.taken]
        if removed:
            await self._history.try_remove(
                conversation.session_id,
                *removed,
                claim=conversation.claim,
                max_wait_s=conversation.budget.left_s,
                is_stored=conversation.last_message is not None,
                mode="owned",
                request_id=conversation.request_id,
            )

    async def _read(
        self,
        session_id: str,
        sent: Sequence[OpenAIMessage],
        ids: Sequence[str],
        claim: Claim | None,
    ) -> tuple[tuple[list[Message], int], StoredTurn]:
        """Return earlier messages, and what earlier attempts at the turn have stored."""
        if claim is None or not claim.attempt or not ids:
            return await self._load_history(session_id, sent, None), NOTHING_STORED
        turn = await self._history.find_turn(session_id, ids, claim)
        return await self._load_history(session_id, sent, ids[0]), turn

    async def _load_history(
        self, session_id: str, sent: Sequence[OpenAIMessage], before: str | None
    ) -> tuple[list[Message], int]:
        """Return the latest messages, as many as the comparison needs, and the session's size.

        With `before`, only the messages before this id: earlier attempts at the turn, and other
        turns since then, may have stored messages from there on. If the request repeats the
        session's last messages, an incomplete answer to them is deleted.
        """
        # One more than the request has: the session may end with an incomplete answer.
        count = max(self._settings.chat_context_messages, len(sent) + 1)
        if sent and sent[0]["role"] == "tool":
            count = max(count, MAX_TOOL_CALL_DISTANCE)
        read = partial(self._history.get_history_page, session_id, before=before)
        page = await read(limit=min(count, MAX_PAGE))
        if page.has_more and is_transcript(sent):
            overlap = find_overlap(_all_to_openai(page.messages), sent)
            if not overlap.known:
                # The transcript may start earlier in the session and diverge from it.
                page = await read(limit=MAX_PAGE)
        earlier = page.messages
        if earlier and earlier[-1].status == INCOMPLETE:
            known = _all_to_openai(earlier[:-1])
            if sent and is_repeated(known, sent):
                await self._history.remove_messages(session_id, earlier[-1:], mode="owned")
                return earlier[:-1], page.message_count - 1
        return earlier, page.message_count

    def _context(
        self, earlier: Sequence[Message], sent: Sequence[OpenAIMessage]
    ) -> list[OpenAIMessage]:
        """Return the earlier messages that the model receives."""
        trimmed = trim_to_budget(
            with_calls_last(_all_to_openai(earlier), sent),
            messages=self._settings.chat_context_messages,
            tokens=self._settings.chat_context_tokens,
            needs_last_exchange=bool(sent) and sent[0]["role"] == "tool",
        )
        return drop_unpaired_tool_calls(trimmed, sent)


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
        return [to_message(each, model, message_id=new_message_id()) for each in sent[known:]]
    stored_ids = {message.id for message in stored}
    first = next((at for at, each in enumerate(ids) if each in stored_ids), known)
    return [
        to_message(message, model, message_id=message_id)
        for message, message_id in list(zip(sent, ids, strict=True))[min(known, first) :]
        if message_id not in stored_ids
    ]


def _all_to_openai(messages: Sequence[Message]) -> list[OpenAIMessage]:
    return [to_openai(message) for message in messages]
