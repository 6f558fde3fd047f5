"""Idempotency keys: requests with the same key share one turn, on whichever workers they arrive."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass

import orjson

from groqchat import sse
from groqchat.errors import (
    GroqChatError,
    IdempotencyKeyReused,
    SessionCleared,
    TurnLost,
    TurnNotFound,
)
from groqchat.models import ChatRequest
from groqchat.retry import Backoff
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.registry import TurnRegistry, last_events
from groqchat.storage import keys
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import is_final
from groqchat.storage.message_ids import new_message_id

# A worker that has claimed a turn writes the first event within a moment. If the worker dies, the
# claim expires after the lease, and there is less to gain from frequent polls.
CLAIM_BACKOFF = Backoff(base_s=0.025, cap_s=0.2)
CLAIM_TIMEOUT_S = keys.TURN_LEASE_S + 5.0
OUTCOME_ATTEMPTS = 2
# Fields that change how the answer is delivered, not the answer.
UNFINGERPRINTED_FIELDS = {"stream", "on_disconnect"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedRequest:
    """A request with an Idempotency-Key: the fields of its fingerprint, and how its turn starts.

    `start` receives the id of the turn and that of its session.
    """

    fields: str
    session_id: str | None
    start: Callable[[str, str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedTurn:
    """The turn of a key, and an iterator over its events."""

    turn_id: str
    events: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The turn of a key; session and turn id stay the same for every attempt."""

    turn_id: str
    session_id: str
    fingerprint: str


class IdempotencyKeys:
    """Runs one turn for each key: the request that claims the turn runs it, the others follow.

    If the turn fails or its worker dies, the next request runs it again. The user message has the
    same id then, so it is stored once.
    """

    def __init__(self, *, batcher: CommandBatcher, chat: ChatService, turns: TurnRegistry) -> None:
        self._batcher = batcher
        self._chat = chat
        self._turns = turns

    async def follow(
        self, key: str, request: ChatRequest | KeyedRequest, *, waits_for_text: bool = False
    ) -> FollowedTurn:
        """Follow a key's turn, and start it unless another request has claimed it.

        With `waits_for_text`, waits as `Turn.wait_for_text`.
        """
        keyed = self._keyed(request)
        record = await self._find_or_create(key, keyed)
        deadline = asyncio.get_running_loop().time() + CLAIM_TIMEOUT_S
        polls = 0
        while True:
            self._chat.check()
            if await self._claim(record, key):
                await self._start(record, keyed)
            try:
                events = await self._turns.follow(
                    record.turn_id, waits_for_text=waits_for_text, waits_for_start=False
                )
                if events is not None:
                    return FollowedTurn(turn_id=record.turn_id, events=events)
            except TurnNotFound:
                if asyncio.get_running_loop().time() > deadline:
                    raise TurnLost(f"turn {record.turn_id} did not start") from None
            await asyncio.sleep(CLAIM_BACKOFF.delay_s(polls))
            polls += 1

    async def outcome(self, key: str, request: ChatRequest | KeyedRequest) -> bytes:
        """Return the final event of a key's turn; run the turn again if its worker dies."""
        for _ in range(OUTCOME_ATTEMPTS - 1):
            try:
                return await self._final_event(key, request)
            except TurnLost:
                # A deletion of the session has deleted the record of the key too.
                if not await self._exists(key):
                    raise SessionCleared from None
        return await self._final_event(key, request)

    async def leave(self, key: str) -> None:
        """Stop a key's turn if this worker runs it and no other client waits for it.

        Call this when a client that asked for `on_disconnect: cancel` has disconnected. A client
        that leaves without this call counts as one that waits.
        """
        digest = _digest(key)
        count = keys.requests_key(digest)
        waiting, _, found = await self._batcher.transact(
            [
                ("DECR", count),
                ("EXPIRE", count, keys.IDEMPOTENCY_TTL_S),
                ("GET", keys.idempotency_key(digest)),
            ]
        )
        if found and waiting <= 0:
            self._turns.stop_local(_Record(**orjson.loads(found)).turn_id, "disconnected")

    def _keyed(self, request: ChatRequest | KeyedRequest) -> KeyedRequest:
        if isinstance(request, KeyedRequest):
            return request

        def start(turn_id: str, session_id: str) -> None:
            self._chat.start(request, turn_id=turn_id, session_id=session_id)

        return KeyedRequest(
            # Without defaults: a new optional field must not change the fingerprint of old
            # requests.
            fields=request.model_dump_json(exclude=UNFINGERPRINTED_FIELDS, exclude_defaults=True),
            session_id=request.session_id,
            start=start,
        )

    async def _final_event(self, key: str, request: ChatRequest | KeyedRequest) -> bytes:
        followed = await self.follow(key, request)
        last = sse.last_event(await last_events(followed.events))
        if not is_final(last):
            raise TurnLost("the events ended without an outcome")
        return last

    async def _start(self, record: _Record, request: KeyedRequest) -> None:
        try:
            request.start(record.turn_id, record.session_id)
        except GroqChatError:
            # The next request need not wait until the lease expires.
            await self._batcher.transact([("DEL", keys.claim_key(record.turn_id))])
            raise

    async def _find_or_create(self, key: str, request: KeyedRequest) -> _Record:
        """Return the record of a key; create it from this request if the key is new."""
        own = _Record(
            turn_id=new_message_id(),
            session_id=request.session_id or str(uuid.uuid4()),
            fingerprint=hashlib.sha256(request.fields.encode()).hexdigest(),
        )
        digest = _digest(key)
        name, count = keys.idempotency_key(digest), keys.requests_key(digest)
        _, found, *_ = await self._batcher.transact(
            [
                ("SET", name, orjson.dumps(asdict(own)), "NX", "EX", keys.IDEMPOTENCY_TTL_S),
                ("GET", name),
                ("INCR", count),
                ("EXPIRE", count, keys.IDEMPOTENCY_TTL_S),
            ]
        )
        record = _Record(**orjson.loads(found))
        if record.fingerprint != own.fingerprint:
            raise IdempotencyKeyReused(param="Idempotency-Key")
        return record

    async def _exists(self, key: str) -> bool:
        """Return whether a key has a record."""
        (exists,) = await self._batcher.transact([("EXISTS", keys.idempotency_key(_digest(key)))])
        return bool(exists)

    async def _claim(self, record: _Record, key: str) -> bool:
        """Return whether this request may run the turn; the claim expires if it is not renewed.

        The claim and the record of the key are deleted with the session.
        """
        token = uuid.uuid4().hex.encode()
        name = keys.claim_key(record.turn_id)
        *_, holder = await self._batcher.transact(
            [
                *keys.link_to_session(
                    record.session_id, name, keys.idempotency_key(_digest(key)), now_s=time.time()
                ),
                ("SET", name, token, "NX", "EX", keys.TURN_LEASE_S),
                ("GET", name),
            ]
        )
        return bool(holder == token)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
