"""The OpenAI-compatible endpoint: forwards requests to Groq, within a session if one is named."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus

import orjson
from aiohttp import ClientResponse

from groqchat import sse
from groqchat.errors import CompletionUnavailable, GroqChatError, RateLimited
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import MAX_LINE_BYTES, StreamParser
from groqchat.services.groq.errors import redact
from groqchat.services.openai.conversations import Conversation, Conversations
from groqchat.services.openai.messages import answer_message
from groqchat.services.openai.models import ChatCompletionRequest
from groqchat.services.openai.responses import (
    ProxyResponse,
    chunks,
    forwarded_error,
    forwarded_headers,
    is_final,
    parse_answer,
    rate_limited,
    starts_stream,
)
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.turn import Turn
from groqchat.settings import Settings
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import FAILED, INCOMPLETE, Message

# Whether the messages of a client with a session are stored. For a stream, the header is sent
# before the answer, so it covers only the messages of the request.
SAVED_HEADER = "X-History-Saved"

log = logging.getLogger(__name__)


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
        """Return Groq's answer, or its error for this request; raise CompletionError otherwise."""
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
            return await self._forward(body, request, conversation)

    async def _forward(
        self, body: bytes, request: ChatCompletionRequest, conversation: Conversation | None
    ) -> ProxyResponse:
        is_streamed = bool(request.stream)
        with self._groq.completion_deadline() as deadline:
            try:
                response = await self._groq.forward(
                    body, model=request.model or "", is_streamed=is_streamed
                )
            except RateLimited as error:
                return rate_limited(error)
            if starts_stream(response, is_streamed=is_streamed):
                return self._stream(response, conversation, request.model, deadline.left_s)
            async with response:
                content = b"".join([chunk async for chunk in chunks(response)])
        return await self._finish(response, content, conversation)

    async def _finish(
        self, response: ClientResponse, content: bytes, conversation: Conversation | None
    ) -> ProxyResponse:
        """Store the answer in a response body, or roll back a request that Groq rejected."""
        if response.status == HTTPStatus.OK:
            answer = parse_answer(content)
            headers = forwarded_headers(response)
            if conversation is not None:
                is_saved = await self._conversations.end(conversation, answer)
                headers[SAVED_HEADER] = str(is_saved).lower()
            return ProxyResponse(status=response.status, headers=headers, body=content)
        fault = self._groq.service_fault(response.status, content)
        if fault is not None:
            raise fault
        reply = forwarded_error(response, content)
        if conversation is not None and is_final(response.status):
            await self._conversations.rollback(conversation)
        return reply

    def _stream(
        self,
        response: ClientResponse,
        conversation: Conversation | None,
        model: str | None,
        timeout_s: float,
    ) -> ProxyResponse:
        """Forward a stream in a task of its own, which continues if the client disconnects."""
        headers = forwarded_headers(response)
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
    async for chunk in chunks(response):
        if events := buffer.feed(chunk):
            yield _redact_errors(events)
        if buffer.pending_bytes > MAX_LINE_BYTES:
            raise CompletionUnavailable(f"an event exceeds {MAX_LINE_BYTES} bytes")
    if rest := buffer.flush():
        yield _redact_errors(rest)


def _redact_errors(events: bytes) -> bytes:
    return redact(events) if b'"error"' in events and b"org_" in events else events


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
