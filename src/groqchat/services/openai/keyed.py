"""Completions with an Idempotency-Key: one completion for each key, whose response is repeated.

The response is stored as the events of a turn. A `delta` contains a part of a stream; the first one
contains the headers. `done` or `error` contains a whole response, or the end of a stream. Bytes are
stored as text in Latin-1, which preserves all of them.
"""

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson

from groqchat import sse
from groqchat.errors import CompletionUnavailable, GroqChatError, ShuttingDown, TurnLost
from groqchat.services.groq.completions import StreamParser
from groqchat.services.openai.models import ChatCompletionRequest
from groqchat.services.openai.proxy import OpenAIProxy
from groqchat.services.openai.responses import ProxyResponse
from groqchat.services.openai.stored_completion import SAVED_HEADER
from groqchat.services.turns.idempotency import IdempotencyKeys, KeyedRequest
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.running_bodies import count_values, memory_of
from groqchat.services.turns.turn import Turn
from groqchat.storage.claims import Claim

LATIN_1 = "latin-1"
# Keys of the two endpoints are independent.
KEY_PREFIX = "openai\n"
# The events contain responses of Groq, which only this endpoint can send.
TURN_SUFFIX = "-openai"

log = logging.getLogger(__name__)


class KeyedCompletions:
    """Runs the completion of a key in a turn of its own, which continues without its client."""

    def __init__(
        self,
        *,
        proxy: OpenAIProxy,
        keys: IdempotencyKeys,
        turns: TurnRegistry,
        limiter: TurnLimiter,
        timeout_s: float,
    ) -> None:
        self._proxy = proxy
        self._keys = keys
        self._turns = turns
        self._limiter = limiter
        self._timeout_s = timeout_s

    async def complete(
        self, key: str, body: bytes, request: ChatCompletionRequest, session_id: str | None
    ) -> ProxyResponse:
        """Return the response of a key's completion; run it unless another request does.

        Raises IdempotencyKeyReused if the key was used with another body or session.
        """
        keyed = KeyedRequest(
            fields=_canonical(body, session_id),
            session_id=session_id,
            suffix=TURN_SUFFIX,
            start=partial(self._start, body, request, session_id),
        )
        if not request.stream:
            return _whole(sse.parse_event(await self._keys.outcome(KEY_PREFIX + key, keyed))[1])
        followed = await self._keys.follow(KEY_PREFIX + key, keyed)
        parts = _parts(followed.events)
        try:
            name, data = await anext(parts)
        except StopAsyncIteration:
            raise TurnLost("the events ended without a response") from None
        if name != "delta":
            return _whole(data)
        headers = orjson.loads(orjson.loads(data)["text"])
        return ProxyResponse(status=HTTPStatus.OK, headers=headers, events=_stream(parts))

    def _start(
        self,
        body: bytes,
        request: ChatCompletionRequest,
        session_id: str | None,
        claim: Claim,
        turn_session_id: str,
    ) -> None:
        self._limiter.check_turn()
        turn = Turn(claim.turn_id, turn_session_id, claim=claim)
        turn.add("start", {"turn_id": turn.id})
        task = asyncio.create_task(self._run(turn, claim, body, request, session_id))
        # A done callback also runs if the task is cancelled before its first step.
        task.add_done_callback(lambda _: self._end(turn))
        # The completion continues without the request.
        release = self._limiter.bodies.add(memory_of(body, count_values(body)))
        task.add_done_callback(lambda _: release())
        self._limiter.add(task)
        self._turns.add(turn)

    async def _run(
        self,
        turn: Turn,
        claim: Claim,
        body: bytes,
        request: ChatCompletionRequest,
        session_id: str | None,
    ) -> None:
        try:
            async with turn.stoppable(self._timeout_s):
                reply = await self._proxy.complete(body, request, session_id, claim=claim)
                if reply.events is None and reply.headers.get(SAVED_HEADER) != "true":
                    # A newer attempt may have another answer.
                    await self._keys.confirm(claim)
                await self._answer(turn, reply)
        except TurnLost:
            turn.supersede()
        except GroqChatError as error:
            turn.error = error
        except Exception as error:
            log.exception("a completion with an Idempotency-Key failed")
            turn.error = CompletionUnavailable(type(error).__name__)

    async def _answer(self, turn: Turn, reply: ProxyResponse) -> None:
        """Add the events of a response."""
        if reply.events is None:
            outcome = {"status": reply.status, "headers": dict(reply.headers)}
            body = reply.body.decode(LATIN_1)
            is_answer = reply.status == HTTPStatus.OK
            turn.add("done" if is_answer else "error", {**outcome, "body": body, "event": ""})
            return
        parser = StreamParser(turn.id)
        turn.add_text(orjson.dumps(dict(reply.headers)).decode())
        try:
            async for events in reply.events:
                turn.add_text(events.decode(LATIN_1))
                parser.feed(events)
        finally:
            reply.close()
        is_answer = parser.error is None and parser.finish_reason is not None
        turn.add("done" if is_answer else "error", {"event": ""})

    def _end(self, turn: Turn) -> None:
        """Add the error of a turn without an outcome, and end it."""
        if not (turn.has_outcome or turn.is_superseded):
            error = turn.error or turn.stop_error() or ShuttingDown()
            log.warning("turn %s: %s (%s)", turn.id, error.code, error.detail)
            data = self._turns.encode_error(error)
            turn.add(
                "error",
                {
                    "status": data["status"],
                    "headers": _retry_headers(data["status"], data["retry_after_s"]),
                    "body": orjson.dumps({"error": data["error"]}).decode(LATIN_1),
                    "event": sse.encode_event(orjson.dumps(data), name="error").decode(LATIN_1),
                },
            )
        turn.end()


def _retry_headers(status: int, retry_after_s: float | None) -> dict[str, str]:
    if status not in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return {}
    return {"Retry-After": str(max(math.ceil(retry_after_s or 1), 1))}


def _whole(data: bytes) -> ProxyResponse:
    """Return the whole response in the data of a final event."""
    outcome = orjson.loads(data)
    return ProxyResponse(
        status=outcome["status"],
        headers=outcome["headers"],
        body=outcome["body"].encode(LATIN_1),
    )


async def _parts(events: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    """Yield name and data of the events after `start`."""
    async for several in events:
        for event in _split(several):
            name, data = sse.parse_event(event)
            if name != "start":
                yield name, data


def _split(events: bytes) -> Iterator[bytes]:
    yield from events.removesuffix(sse.EVENT_END).split(sse.EVENT_END)


async def _stream(parts: AsyncIterator[tuple[str, bytes]]) -> AsyncIterator[bytes]:
    async for name, data in parts:
        field = "text" if name == "delta" else "event"
        if raw := orjson.loads(data)[field].encode(LATIN_1):
            yield raw


def _canonical(body: bytes, session_id: str | None) -> str:
    """Return a text that is equal for equal requests; numbers stay as the client wrote them."""
    fields: Any = json.loads(body, parse_int=_number, parse_float=_number)
    text = json.dumps([session_id, fields], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _number(text: str) -> dict[str, str]:
    return {"": text}
