"""Idempotency keys: requests with the same key share one turn, on whichever workers they arrive."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from groqchat import sse
from groqchat.errors import (
    GroqChatError,
    IdempotencyKeyReused,
    SessionCleared,
    StorageError,
    TurnLost,
    TurnNotFound,
)
from groqchat.models import ChatRequest
from groqchat.retry import MIN_SAVE_WAIT_S, Backoff
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.registry import TurnRegistry, last_events
from groqchat.services.turns.waiters import Waiter, Waiters
from groqchat.storage import keys
from groqchat.storage.claims import Claim, claim_turn, parse_claim_reply, parse_fence_reply
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.errors import redis_errors
from groqchat.storage.event_log import is_final
from groqchat.storage.keys import Command
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

    `start` receives the claim of the turn and the id of its session. With a `suffix` of its id, the
    endpoints of turns do not know the turn.
    """

    fields: str
    session_id: str | None
    suffix: str = ""
    start: Callable[[Claim, str], object]


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
        self.waiters = Waiters(batcher, turns)

    async def follow(
        self,
        key: str,
        request: ChatRequest | KeyedRequest,
        *,
        waiter: Waiter | None = None,
        waits_for_text: bool = False,
    ) -> FollowedTurn:
        """Follow a key's turn, and start it unless another request has claimed it.

        Counts `waiter` as a request that waits for the turn. With `waits_for_text`, waits as
        `Turn.wait_for_text`.
        """
        keyed = self._keyed(request)
        record = await self._find_or_create(key, keyed)
        turn_id = record.turn_id
        deadline = asyncio.get_running_loop().time() + CLAIM_TIMEOUT_S
        # An attempt that had ended before this request is not followed, but run again.
        ended = self._turns.local(turn_id)
        ended = ended if ended and ended.rejects_new_requests else None
        polls = 0
        while True:
            self._chat.check()
            await self._claim_or_join(record, key, keyed, waiter)
            turn = self._turns.local(turn_id)
            if turn is None or turn is not ended or not turn.rejects_new_requests:
                with suppress(TurnNotFound):
                    events = await self._turns.follow(
                        turn_id, waits_for_text=waits_for_text, waits_for_start=False
                    )
                    if events is not None:
                        return FollowedTurn(turn_id=turn_id, events=events)
            if asyncio.get_running_loop().time() > deadline:
                raise TurnLost(f"turn {turn_id} did not start")
            await asyncio.sleep(CLAIM_BACKOFF.delay_s(polls))
            polls += 1

    async def outcome(
        self, key: str, request: ChatRequest | KeyedRequest, *, waiter: Waiter | None = None
    ) -> bytes:
        """Return the final event of a key's turn; run the turn again if its worker dies."""
        for _ in range(OUTCOME_ATTEMPTS - 1):
            try:
                return await self._final_event(key, request, waiter)
            except TurnLost:
                # A deletion of the session has deleted the record of the key too.
                if not await self._exists(key):
                    raise SessionCleared from None
        return await self._final_event(key, request, waiter)

    async def confirm(self, claim: Claim) -> None:
        """Raise TurnLost if another attempt owns the turn; without Redis, do nothing."""
        with suppress(StorageError):
            async with redis_errors(MIN_SAVE_WAIT_S):
                await claim.execute(self._batcher.transact, [])

    def _keyed(self, request: ChatRequest | KeyedRequest) -> KeyedRequest:
        if isinstance(request, KeyedRequest):
            return request

        def start(claim: Claim, session_id: str) -> None:
            self._chat.start(request, claim=claim, session_id=session_id)

        return KeyedRequest(
            # Without defaults: a new optional field must not change the fingerprint of old
            # requests.
            fields=request.model_dump_json(exclude=UNFINGERPRINTED_FIELDS, exclude_defaults=True),
            session_id=request.session_id,
            start=start,
        )

    async def _final_event(
        self, key: str, request: ChatRequest | KeyedRequest, waiter: Waiter | None
    ) -> bytes:
        followed = await self.follow(key, request, waiter=waiter)
        last = sse.last_event(await last_events(followed.events))
        if not is_final(last):
            raise TurnLost("the events ended without an outcome")
        return last

    async def _start(self, record: _Record, request: KeyedRequest, claim: Claim) -> None:
        try:
            request.start(claim, record.session_id)
        except GroqChatError:
            # The next request need not wait until the lease expires.
            await claim.release(self._batcher.transact)
            raise

    async def _find_or_create(self, key: str, request: KeyedRequest) -> _Record:
        """Return the record of a key; create it from this request if the key is new."""
        own = _Record(
            turn_id=new_message_id() + request.suffix,
            session_id=request.session_id or str(uuid.uuid4()),
            fingerprint=hashlib.sha256(request.fields.encode()).hexdigest(),
        )
        name = keys.idempotency_key(_digest(key))
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

    async def _exists(self, key: str) -> bool:
        """Return whether a key has a record."""
        (exists,) = await self._batcher.transact([("EXISTS", keys.idempotency_key(_digest(key)))])
        return bool(exists)

    async def _claim_or_join(
        self, record: _Record, key: str, request: KeyedRequest, waiter: Waiter | None
    ) -> None:
        """Claim the turn and start it, unless another request has claimed it or it runs here.

        The claim of a turn that runs here may have expired while Redis was unavailable. It is
        restored then.
        """
        running = self._turns.local(record.turn_id)
        if running is not None and not running.is_over and running.claim is not None:
            reply = await self._join(record, key, waiter, running.claim.fence([]))
            if parse_fence_reply(reply) is None:
                running.supersede()
            return
        token = uuid.uuid4().hex
        reply = await self._join(record, key, waiter, claim_turn(record.turn_id, token))
        attempt = parse_claim_reply(reply)
        if attempt is not None:
            claim = Claim(
                turn_id=record.turn_id,
                token=token,
                attempt=attempt,
                record_key=keys.idempotency_key(_digest(key)),
            )
            await self._start(record, request, claim)

    async def _join(
        self, record: _Record, key: str, waiter: Waiter | None, command: Command
    ) -> Sequence[Any]:
        """Return the reply to a command, sent when a request begins to wait for its turn.

        All keys of the turn are deleted with the session; raises SessionCleared if that has
        happened.
        """
        turn_id, record_key = record.turn_id, keys.idempotency_key(_digest(key))
        names = keys.keyed_turn_keys(turn_id)
        stored, *_, reply = await self._batcher.transact(
            [
                ("GET", record_key),
                *keys.link_to_session(record.session_id, record_key, *names, now_s=time.time()),
                *(waiter.count(turn_id) if waiter else ()),
                command,
            ]
        )
        if stored is None or orjson.loads(stored)["turn_id"] != turn_id:
            # Not the record: another request may have created it again.
            linked = [name.encode() for name in names]
            await self._batcher.transact(keys.unlink_from_session(record.session_id, linked))
            raise SessionCleared
        if waiter is not None:
            waiter.turn_id = turn_id
        replies: Sequence[Any] = reply
        return replies


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
