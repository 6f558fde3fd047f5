"""The OpenAI-compatible endpoint: forwards requests to Groq, within a session if one is named."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus

import orjson
from aiohttp import ClientError, ClientResponse

from groqchat import sse
from groqchat.errors import (
    CompletionError,
    CompletionTimeout,
    CompletionUnavailable,
    GroqChatError,
    RateLimited,
)
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import StreamParser, parse_json, valid_tokens
from groqchat.services.groq.errors import RETRYABLE_STATUS, redact
from groqchat.services.groq.rate_limits import rate_limit_body
from groqchat.services.openai.conversations import Conversation, Conversations
from groqchat.services.openai.messages import answer_message
from groqchat.services.openai.models import ChatCompletionRequest
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.turn import Turn
from groqchat.settings import Settings
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import FAILED, INCOMPLETE, Message

# Groq's headers that clients act on.
FORWARDED_HEADERS = ("x-ratelimit-", "retry-after", "x-groq-")
# More than the longest answer of any model, in OpenAI's format.
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
# Whether the messages of a client with a session are stored. For a stream, the header is sent
# before the answer, so it covers only the messages of the request.
SAVED_HEADER = "X-History-Saved"
AUTH_STATUSES = frozenset({401, 403})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyResponse:
    """Groq's response: a complete body, or a turn to follow."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    content_type: str = ""
    turn: Turn | None = None


class OpenAIProxy:
    """Forwards requests to Groq; within a session, adds earlier messages and stores new ones."""

    def __init__(
        self,
        *,
        groq: GroqClient,
        conversations: Conversations,
        turns: TurnRegistry,
        limiter: TurnLimiter,
        settings: Settings,
    ) -> None:
        self._groq = groq
        self._conversations = conversations
        self._turns = turns
        self._limiter = limiter
        self._settings = settings

    async def complete(
        self, body: bytes, request: ChatCompletionRequest, session_id: str | None
    ) -> ProxyResponse:
        """Return Groq's response, whatever its status; raise CompletionError if there is none."""
        self._groq.check_model(request.model or "")
        with self._limiter:
            conversation = None
            if session_id is not None:
                # `json` does not change numbers, not even beyond 64 bits.
                fields = json.loads(body)
                conversation = await self._conversations.begin(
                    session_id, fields.get("messages"), request.model
                )
                body = json.dumps({**fields, "messages": conversation.messages}).encode()
            try:
                return await self._forward(body, request, conversation)
            except RateLimited as error:
                return _rate_limited(error)

    async def _forward(
        self, body: bytes, request: ChatCompletionRequest, conversation: Conversation | None
    ) -> ProxyResponse:
        with self._groq.completion_deadline() as deadline:
            response = await self._groq.forward(
                body, model=request.model or "", is_streamed=bool(request.stream)
            )
            if response.status == HTTPStatus.OK and response.content_type == sse.CONTENT_TYPE:
                return self._stream(response, conversation, request.model, deadline.left_s)
            async with response:
                content = b"".join([chunk async for chunk in _chunks(response)])
        return await self._finish(response, content, conversation)

    async def _finish(
        self, response: ClientResponse, body: bytes, conversation: Conversation | None
    ) -> ProxyResponse:
        """Store the answer in a response body, or roll back a rejected request."""
        headers = _forwarded_headers(response)
        if response.status != HTTPStatus.OK:
            await self._handle_error(response.status, conversation)
            body = redact(body)
        elif conversation is not None:
            headers[SAVED_HEADER] = str(await self._store_answer(conversation, body)).lower()
        return ProxyResponse(
            status=response.status,
            headers=headers,
            body=body,
            content_type=response.content_type,
        )

    async def _handle_error(self, status: int, conversation: Conversation | None) -> None:
        if status in AUTH_STATUSES:
            log.error("Groq rejects the service's API key: %d", status)
        is_final = status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in RETRYABLE_STATUS
        if conversation is not None and is_final:
            await self._conversations.rollback(conversation)

    async def _store_answer(self, conversation: Conversation, body: bytes) -> bool:
        """Store the answer in a response body and return whether it is stored."""
        try:
            reply = parse_json(body)
            choice = reply["choices"][0]
            answer = answer_message(
                choice["message"],
                model=reply.get("model"),
                tokens=valid_tokens((reply.get("usage") or {}).get("total_tokens")),
                finish_reason=choice.get("finish_reason"),
            )
        except (AttributeError, CompletionError, IndexError, KeyError, TypeError):
            log.warning("a response in session %s is not a completion", conversation.session_id)
            return False
        return await self._conversations.end(conversation, answer)

    def _stream(
        self,
        response: ClientResponse,
        conversation: Conversation | None,
        model: str | None,
        timeout_s: float,
    ) -> ProxyResponse:
        """Forward a stream in a task of its own, which continues if the client disconnects."""
        headers = _forwarded_headers(response)
        if conversation is not None:
            headers[SAVED_HEADER] = str(conversation.last_message is not None).lower()
        session_id = conversation.session_id if conversation else ""
        turn = Turn(new_message_id(), session_id, is_private=True)
        parser = StreamParser(model or self._settings.groq_default_model)
        task = asyncio.create_task(
            self._forward_stream(response, turn, parser, conversation, timeout_s)
        )
        # A done callback also runs if the task is cancelled before its first step.
        task.add_done_callback(lambda _: turn.end())
        self._limiter.add(task)
        self._turns.add(turn)
        return ProxyResponse(status=response.status, headers=headers, turn=turn)

    async def _forward_stream(
        self,
        response: ClientResponse,
        turn: Turn,
        parser: StreamParser,
        conversation: Conversation | None,
        timeout_s: float,
    ) -> None:
        texts: list[str] = []
        last = b""
        try:
            async with response, turn.stoppable(timeout_s):
                async for events in _complete_events(response):
                    if conversation is not None:
                        texts.append(parser.feed(events))
                    if parser.is_done:
                        # Sent after the answer is stored, so that the client finds it there.
                        last += events
                    else:
                        turn.add_raw(events)
            turn.error = turn.stop_error()
            if conversation is not None and not (turn.stop_reason or parser.finish_reason):
                turn.error = CompletionUnavailable("the stream ended before the answer")
        except GroqChatError as error:
            turn.error = error
        except Exception as error:
            log.exception("forwarding a stream failed")
            turn.error = CompletionUnavailable(type(error).__name__)
        try:
            if conversation is not None:
                await self._conversations.end(conversation, _streamed_answer(turn, parser, texts))
        finally:
            if turn.error is not None:
                data = orjson.dumps(self._turns.encode_error(turn.error))
                last += sse.encode_event(data, name="error")
            turn.add_raw(last)
            turn.end()


async def _complete_events(response: ClientResponse) -> AsyncIterator[bytes]:
    """Yield complete events only, so that a ping or an error never splits one."""
    buffer = sse.EventBuffer()
    async for chunk in _chunks(response):
        if events := buffer.feed(chunk):
            yield _redact_errors(events)
    if rest := buffer.flush():
        yield _redact_errors(rest)


def _redact_errors(events: bytes) -> bytes:
    return redact(events) if b'"error"' in events and b"org_" in events else events


async def _chunks(response: ClientResponse) -> AsyncIterator[bytes]:
    """Yield a response as it arrives; raise CompletionError beyond MAX_RESPONSE_BYTES."""
    size = 0
    try:
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                raise CompletionUnavailable(f"more than {MAX_RESPONSE_BYTES} bytes")
            yield chunk
    except TimeoutError as error:
        raise CompletionTimeout("no data during the answer") from error
    except (ClientError, OSError) as error:
        raise CompletionUnavailable(f"during the answer: {type(error).__name__}") from error


def _rate_limited(error: RateLimited) -> ProxyResponse:
    """Return the 429 that Groq would send while its limit applies, for the retries of SDKs."""
    retry_after_s = error.retry_after_s or 1.0
    return ProxyResponse(
        status=HTTPStatus.TOO_MANY_REQUESTS,
        headers={"Retry-After": str(math.ceil(retry_after_s))},
        body=rate_limit_body(retry_after_s),
        content_type="application/json",
    )


def _forwarded_headers(response: ClientResponse) -> dict[str, str]:
    return {
        name: value
        for name, value in response.headers.items()
        if name.lower().startswith(FORWARDED_HEADERS)
    }


def _streamed_answer(turn: Turn, parser: StreamParser, texts: list[str]) -> Message:
    """Return the text of a stream as a message; incomplete if the stream was cut short."""
    is_complete = turn.error is None and turn.stop_reason is None and parser.error is None
    answer = answer_message(
        # An incomplete tool call is not valid.
        {"content": "".join(texts), "tool_calls": parser.tool_calls if is_complete else None},
        model=parser.model,
        tokens=parser.tokens,
        finish_reason=parser.finish_reason if is_complete else FAILED,
    )
    return answer if is_complete else replace(answer, status=INCOMPLETE)
