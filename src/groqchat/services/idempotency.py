"""One turn for an Idempotency-Key, however often and wherever it is asked for."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass

import orjson

from groqchat.errors import GroqChatError, IdempotencyKeyReused, TurnLost, TurnNotFound
from groqchat.models import ChatRequest
from groqchat.services.chat import ChatService
from groqchat.services.turn import Turn
from groqchat.services.turns import Turns, last_of
from groqchat.storage import keys
from groqchat.storage.batching import Batcher
from groqchat.storage.messages import new_message_id
from groqchat.storage.turn_log import LAST_EVENTS, last_frame, parse_frame

# A worker that has begun a turn shows its first event within a moment, or is gone after a lease.
BEGIN_EVERY_S = 0.025
BEGIN_WAIT_S = keys.TURN_LEASE_S + 5.0
OUTCOME_ATTEMPTS = 2
# How the answer is sent is no part of what is asked.
NOT_ASKED = {"stream", "on_disconnect"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What a key stands for; the session is known before the first attempt and kept."""

    turn_id: str
    session_id: str
    fingerprint: str


class Idempotency:
    """Runs a turn once: whoever claims it runs it, all others follow.

    Where the one who ran it is gone, or failed, the next who asks runs it again: its question
    has the same id, so that it is not stored twice.
    """

    def __init__(self, batcher: Batcher, chat: ChatService, turns: Turns) -> None:
        self._batcher = batcher
        self._chat = chat
        self._turns = turns

    async def begin(
        self, key: str, request: ChatRequest
    ) -> tuple[AsyncIterator[bytes], Turn | None]:
        """Return the events of a key's turn, and the turn itself where it runs for this request."""
        record = await self._record(key, request)
        deadline = asyncio.get_running_loop().time() + BEGIN_WAIT_S
        while True:
            self._chat.check()
            if await self._claim(record.turn_id):
                turn = await self._start(record, request)
                return turn.follow(), turn
            try:
                events = await self._turns.follow(record.turn_id)
                if events is not None:
                    return events, None
            except TurnNotFound:
                if asyncio.get_running_loop().time() > deadline:
                    raise TurnLost(f"turn {record.turn_id} never began") from None
            await asyncio.sleep(BEGIN_EVERY_S)

    async def outcome(self, key: str, request: ChatRequest) -> bytes:
        """Return the last event of a key's turn, running it again if its worker is lost."""
        for _ in range(OUTCOME_ATTEMPTS - 1):
            with suppress(TurnLost):
                return await self._last_event(key, request)
        return await self._last_event(key, request)

    async def _last_event(self, key: str, request: ChatRequest) -> bytes:
        events, _ = await self.begin(key, request)
        last = last_frame(await last_of(events))
        if not last or parse_frame(last)[0] not in LAST_EVENTS:
            raise TurnLost("its events end without an outcome")
        return last

    async def _start(self, record: _Record, request: ChatRequest) -> Turn:
        try:
            return self._chat.start(request, turn_id=record.turn_id, session_id=record.session_id)
        except GroqChatError:
            # Whoever comes next need not wait for the lease to end.
            await self._batcher.transact([("DEL", keys.claim_key(record.turn_id))])
            raise

    async def _record(self, key: str, request: ChatRequest) -> _Record:
        """Return what stands for a key, which is this request where there was nothing."""
        asked = request.model_dump_json(exclude=NOT_ASKED)
        own = _Record(
            turn_id=new_message_id(),
            session_id=request.session_id or str(uuid.uuid4()),
            fingerprint=hashlib.sha256(asked.encode()).hexdigest(),
        )
        name = keys.idempotency_key(hashlib.sha256(key.encode()).hexdigest())
        _, found = await self._batcher.transact(
            [
                ("SET", name, orjson.dumps(asdict(own)), "NX", "EX", keys.IDEMPOTENCY_TTL_S),
                ("GET", name),
            ]
        )
        record = _Record(**orjson.loads(found))
        if record.fingerprint != own.fingerprint:
            raise IdempotencyKeyReused(param="Idempotency-Key")
        return record

    async def _claim(self, turn_id: str) -> bool:
        """Tell whether the turn is this request's to run, for as long as its lease is renewed."""
        token = uuid.uuid4().hex.encode()
        name = keys.claim_key(turn_id)
        _, holder = await self._batcher.transact(
            [("SET", name, token, "NX", "EX", keys.TURN_LEASE_S), ("GET", name)]
        )
        return bool(holder == token)
