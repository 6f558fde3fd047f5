"""The OpenAI-compatible endpoint: forwards requests to Groq, within a session if one is named."""

import asyncio
import logging
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from http import HTTPStatus

import orjson
from aiohttp import ClientResponse
from msgspec import structs

from groqchat import sse
from groqchat.errors import (
    REJECTIONS,
    CompletionError,
    CompletionUnavailable,
    GroqChatError,
    RateLimited,
    SessionCleared,
    ShuttingDown,
    TurnLost,
)
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import DONE, StreamParser
from groqchat.services.groq.errors import strip_tracebacks
from groqchat.services.openai.conversations import Conversation, Conversations
from groqchat.services.openai.models import ChatCompletionRequest
from groqchat.services.openai.relay import GroqEvents, Relay, events_of_chunks, without_done
from groqchat.services.openai.request_body import RequestBody
from groqchat.services.openai.responses import (
    ProxyResponse,
    answer_message,
    answer_of,
    chunks,
    forwarded_error,
    forwarded_headers,
    is_final,
    parse_reply,
    rate_limited,
    starts_stream,
)
from groqchat.services.openai.stored_completion import SAVED_HEADER, stored_completion
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.running_bodies import SMALL_BODY_BYTES
from groqchat.services.turns.turn import Turn
from groqchat.settings import Settings
from groqchat.storage.claims import Claim
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import FAILED, INCOMPLETE, Message

# The last event of a complete stream.
DONE_MARK = sse.encode_event(DONE)

log = logging.getLogger(__name__)


class _Rejected(Exception):
    """Groq's response to a request in a session that it would reject again."""

    def __init__(self, response: ClientResponse, content: bytes) -> None:
        super().__init__(response.status)
        self.response = response
        self.content = content


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
        self._relays: set[Relay] = set()

    async def complete(
        self,
        body: bytes,
        request: ChatCompletionRequest,
        session_id: str | None,
        *,
        claim: Claim | None = None,
    ) -> ProxyResponse:
        """Return Groq's answer, or its error for this request; raise CompletionError otherwise.

        The caller has a slot of the limiter, until the response is sent. `claim` belongs to the
        Idempotency-Key of the request.
        """
        self._groq.check_model(request.model or "")
        if session_id is None:
            return await self._forward(body, request, None)
        parsed = RequestBody(body)
        conversation = await self._conversations.begin(
            session_id, parsed.messages, request.model, claim=claim
        )
        if conversation.stored_answer is not None:
            return stored_completion(conversation.stored_answer, is_streamed=bool(request.stream))
        began_s, spent_s = time.monotonic(), 0.0
        for messages in self._conversations.prompts(conversation):
            prompt = parsed.with_messages(messages)
            # The caller has counted the request, but not the earlier messages.
            added = max(len(prompt) - len(body), 0)
            try:
                holding = self._limiter.bodies.holding
                with holding(added) if added > SMALL_BODY_BYTES else nullcontext():
                    return await self._forward(prompt, request, conversation, spent_s)
            except _Rejected as error:
                response, content = error.response, error.content
                if response.status == HTTPStatus.NOT_FOUND:
                    break
            spent_s = time.monotonic() - began_s
        await self._conversations.rollback(conversation)
        return forwarded_error(response, content)

    def shut_down(self) -> None:
        """End the streams that have no turn with an error, because the service stops."""
        for relay in self._relays:
            relay.fail(ShuttingDown())

    async def _forward(
        self,
        body: bytes,
        request: ChatCompletionRequest,
        conversation: Conversation | None,
        spent_s: float = 0.0,
    ) -> ProxyResponse:
        """Return Groq's response within GROQ_TIMEOUT_S, of which earlier prompts took `spent_s`."""
        is_streamed = bool(request.stream)
        left_s = self._settings.groq_timeout_s - spent_s
        limit = asyncio.timeout(left_s) if spent_s else nullcontext()
        with self._groq.completion_deadline() as deadline:
            async with limit:
                try:
                    response = await self._groq.forward(body, model=request.model or "")
                except RateLimited as error:
                    return rate_limited(error)
                if starts_stream(response, is_streamed=is_streamed):
                    if conversation is None:
                        return self._relay(response, deadline.left_s)
                    left_s = deadline.left_s - spent_s
                    return self._stream(response, conversation, request.model, left_s)
                async with response:
                    content = b"".join([chunk async for chunk in chunks(response)])
        return await self._finish(response, content, conversation)

    async def _finish(
        self, response: ClientResponse, content: bytes, conversation: Conversation | None
    ) -> ProxyResponse:
        """Store the answer in a response body; raise _Rejected if Groq would reject it again."""
        if response.status == HTTPStatus.OK:
            reply = parse_reply(content)
            headers = forwarded_headers(response)
            if conversation is not None:
                is_saved = await self._store(conversation, answer_of(reply))
                headers[SAVED_HEADER] = str(is_saved).lower()
            return ProxyResponse(status=response.status, headers=headers, body=content)
        fault = self._groq.service_fault(response.status, content)
        if fault is not None:
            raise fault
        if conversation is not None and is_final(response.status):
            raise _Rejected(response, content)
        return forwarded_error(response, content)

    async def _store(self, conversation: Conversation, answer: Message) -> bool:
        """Store an answer, and return whether its conversation is stored."""
        try:
            return await self._conversations.end(conversation, answer)
        except SessionCleared:
            return False

    def _relay(self, response: ClientResponse, timeout_s: float) -> ProxyResponse:
        """Return a stream that is read only as fast as its client receives it."""
        relay = Relay(response, self._groq.coalescing, timeout_s=timeout_s)
        self._relays.add(relay)
        return ProxyResponse(
            status=response.status,
            headers=forwarded_headers(response),
            events=relay,
            close=partial(self._close_relay, relay),
        )

    def _close_relay(self, relay: Relay) -> None:
        self._relays.discard(relay)
        relay.close()
        self._release(relay)

    def _release(self, events: GroqEvents) -> None:
        """Return the connection of a complete stream; close it if the stream was cut short."""
        if events.is_done:
            self._groq.release(events.response)
        else:
            events.response.close()

    def _stream(
        self,
        response: ClientResponse,
        conversation: Conversation,
        model: str | None,
        timeout_s: float,
    ) -> ProxyResponse:
        """Forward a stream in a task of its own, which continues if the client disconnects."""
        headers = forwarded_headers(response)
        headers[SAVED_HEADER] = str(conversation.last_message is not None).lower()
        turn = Turn(new_message_id(), conversation.session_id, is_private=True)
        parser = StreamParser(model or self._settings.groq_default_model, has_tools=True)
        # The messages are not needed any more, and the stream may continue without the request.
        task = asyncio.create_task(
            self._forward_stream(
                GroqEvents(response, self._groq.coalescing),
                turn,
                parser,
                replace(conversation, request=[], earlier=(), later=()),
                timeout_s,
            )
        )
        # A done callback also runs if the task is cancelled before its first step.
        task.add_done_callback(lambda _: turn.end())
        self._limiter.add(task)
        self._turns.add(turn)
        return ProxyResponse(
            status=response.status, headers=headers, events=turn.follow(), close=turn.abandon
        )

    async def _forward_stream(
        self,
        stream: GroqEvents,
        turn: Turn,
        parser: StreamParser,
        conversation: Conversation,
        timeout_s: float,
    ) -> None:
        texts: list[str] = []
        last = b""
        try:
            async with turn.stoppable(timeout_s):
                last = await self._forward_events(stream, turn, parser, texts)
            turn.error = _failure_of(turn, parser)
        except CompletionError as error:
            # After a finish reason, only `[DONE]` is missing: the answer is complete.
            if parser.finish_reason is None:
                turn.error = strip_tracebacks(error)
        except GroqChatError as error:
            turn.error = strip_tracebacks(error)
        except Exception as error:
            log.exception("forwarding a stream failed")
            turn.error = CompletionUnavailable(type(error).__name__)
        finally:
            stream.close()
            self._release(stream)
        try:
            if isinstance(turn.error, REJECTIONS) and not any(texts):
                await self._conversations.rollback(conversation)
            else:
                await self._store(conversation, _streamed_answer(turn, parser, texts))
        except TurnLost as error:
            turn.error = strip_tracebacks(error)
        finally:
            if turn.error is not None:
                log.warning("turn %s: %s (%s)", turn.id, turn.error.code, turn.error.detail)
            turn.add_raw(self._last_events(last, turn, parser))
            turn.end()

    async def _forward_events(
        self, stream: GroqEvents, turn: Turn, parser: StreamParser, texts: list[str]
    ) -> bytes:
        """Add events to a turn and their text to `texts`; return the last events of the stream.

        They are sent after the answer is stored, so that the client finds it there.
        """
        async for events in stream:
            texts.append(parser.feed(events))
            if parser.error is not None and not parser.has_error_event:
                # The client receives the text that is stored.
                turn.add_raw(events_of_chunks(events))
                return b""
            if stream.is_done:
                return events
            turn.add_raw(events)
        return b""

    def _last_events(self, last: bytes, turn: Turn, parser: StreamParser) -> bytes:
        """Return the last events for the client, with `[DONE]` or an error at the end."""
        # The client expects one error at most.
        if parser.has_error_event:
            return last
        if turn.error is None:
            return last if turn.stop_reason else last or DONE_MARK
        # Clients stop reading at `[DONE]`, and would not find the error after it.
        data = orjson.dumps(self._turns.encode_error(turn.error))
        return without_done(last) + sse.encode_event(data, name="error")


def _failure_of(turn: Turn, parser: StreamParser) -> GroqChatError | None:
    """Return why a stream that has ended is no complete answer, None if it is one."""
    if error := turn.stop_error() or parser.error:
        return strip_tracebacks(error)
    if turn.stop_reason or parser.finish_reason:
        return None
    return CompletionUnavailable("the stream ended before the answer")


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
    return answer if is_complete else structs.replace(answer, status=INCOMPLETE)
