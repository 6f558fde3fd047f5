"""Completions in Groq's own wire format: passed on as they are, kept where a session is named."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus

import orjson
from aiohttp import ClientError, ClientResponse

from groqchat.errors import (
    CompletionError,
    CompletionTimeout,
    CompletionUnavailable,
    GroqChatError,
)
from groqchat.relay_models import RelayRequest
from groqchat.services.admission import Admission
from groqchat.services.completions import Completions
from groqchat.services.context import check_model
from groqchat.services.conversations import Conversation, Conversations
from groqchat.services.groq_errors import PASSING_STATUS, redacted
from groqchat.services.stream_parser import StreamParser, parse, plausible_tokens
from groqchat.services.turn import Turn
from groqchat.services.turns import Turns
from groqchat.services.wire_messages import answer_message
from groqchat.settings import Settings
from groqchat.storage.messages import BROKEN, INCOMPLETE, Message, new_message_id

# Of Groq's headers, what a client acts on.
PASSED_ON = ("x-ratelimit-", "retry-after", "x-groq-")
EVENT_STREAM = "text/event-stream"
# More than the longest answer of any model, in Groq's wire format.
MAX_RELAYED_BYTES = 64 * 1024 * 1024
EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
# Told where a conversation is kept: of a stream, whether what was asked is.
SAVED_HEADER = "X-History-Saved"
SERVICE_AT_FAULT = frozenset({401, 403})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """Groq's response: whole, or as a turn to be followed."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    content_type: str = ""
    turn: Turn | None = None


class CompatibleChat:
    """Passes requests in Groq's wire format on, with a conversation around them where asked."""

    def __init__(
        self,
        completions: Completions,
        conversations: Conversations,
        turns: Turns,
        admission: Admission,
        settings: Settings,
    ) -> None:
        self._completions = completions
        self._conversations = conversations
        self._turns = turns
        self._admission = admission
        self._settings = settings

    async def complete(self, body: bytes, asked: RelayRequest, session_id: str | None) -> Relayed:
        """Return Groq's response; CompletionError where there is none."""
        check_model(asked.model or "", self._settings)
        with self._admission:
            conversation = None
            if session_id is not None:
                # Python's own parser keeps numbers as they are.
                fields = json.loads(body)
                conversation = await self._conversations.begin(
                    session_id, fields.get("messages"), asked.model
                )
                body = json.dumps({**fields, "messages": conversation.messages}).encode()
            response = await self._completions.relay(body)
            headers = _passed_on(response)
            if response.status == HTTPStatus.OK and response.content_type == EVENT_STREAM:
                turn = self._start(response, conversation, asked.model)
                if conversation is not None:
                    headers[SAVED_HEADER] = str(conversation.question is not None).lower()
                return Relayed(status=response.status, headers=headers, turn=turn)
            content = await _read(response)
            if response.status != HTTPStatus.OK:
                await self._refused(response.status, conversation)
                content = redacted(content)
            elif conversation is not None:
                headers[SAVED_HEADER] = str(await self._keep(conversation, content)).lower()
            return Relayed(
                status=response.status,
                headers=headers,
                body=content,
                content_type=response.content_type,
            )

    async def _refused(self, status: int, conversation: Conversation | None) -> None:
        if status in SERVICE_AT_FAULT:
            log.error("Groq does not take the service's key: %d", status)
        is_final = status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in PASSING_STATUS
        if conversation is not None and is_final:
            await self._conversations.take_back(conversation)

    async def _keep(self, conversation: Conversation, content: bytes) -> bool:
        """Keep the answer in a whole completion."""
        try:
            reply = parse(content)
            choice = reply["choices"][0]
            answer = answer_message(
                choice["message"],
                model=reply.get("model"),
                tokens=plausible_tokens((reply.get("usage") or {}).get("total_tokens")),
                finish_reason=choice.get("finish_reason"),
            )
        except (AttributeError, CompletionError, IndexError, KeyError, TypeError):
            log.warning("an answer of session %s is not one", conversation.session_id)
            return False
        return await self._conversations.end(conversation, answer)

    def _start(
        self, response: ClientResponse, conversation: Conversation | None, model: str | None
    ) -> Turn:
        """Pass a stream on in a task of its own, which a leaving client does not end."""
        session_id = conversation.session_id if conversation else ""
        turn = Turn(new_message_id(), session_id, is_private=True)
        parser = StreamParser(model or self._settings.groq_default_model)
        task = asyncio.create_task(self._pass_on(response, turn, parser, conversation))
        # Also of one that is cancelled before it begins.
        task.add_done_callback(lambda _: turn.end())
        self._admission.add(task)
        self._turns.add(turn)
        return turn

    async def _pass_on(
        self,
        response: ClientResponse,
        turn: Turn,
        parser: StreamParser,
        conversation: Conversation | None,
    ) -> None:
        texts: list[str] = []
        last = b""
        try:
            async with response, turn.stoppable():
                async for events in _whole_events(response):
                    if conversation is not None:
                        texts.append(parser.feed(events))
                    if parser.is_done:
                        # Who has the end of the answer finds it in the history.
                        last += events
                    else:
                        turn.add_raw(events)
            turn.error = turn.failure()
            if conversation is not None and not (turn.stop_reason or parser.finish_reason):
                turn.error = CompletionUnavailable("Groq's stream ended before its answer")
        except GroqChatError as error:
            turn.error = error
        except Exception as error:
            log.exception("a relayed stream failed")
            turn.error = CompletionUnavailable(type(error).__name__)
        try:
            if conversation is not None:
                await self._conversations.end(conversation, _streamed(turn, parser, texts))
        finally:
            if turn.error is not None:
                body = orjson.dumps(self._turns.describe(turn.error))
                last += b"event: error\ndata: " + body + b"\n\n"
            turn.add_raw(last)
            turn.end()


async def _whole_events(response: ClientResponse) -> AsyncIterator[bytes]:
    """Yield what arrives up to the end of an event, so that nothing else comes into one."""
    rest = b""
    async for data in _pieces(response):
        rest += data
        end = max(rest.rfind(mark) + len(mark) if mark in rest else 0 for mark in EVENT_ENDS)
        if end:
            yield _redacted_errors(rest[:end])
            rest = rest[end:]
    if rest:
        yield _redacted_errors(rest.rstrip(b"\r\n") + b"\n\n")


def _redacted_errors(events: bytes) -> bytes:
    return redacted(events) if b'"error"' in events and b"org_" in events else events


async def _pieces(response: ClientResponse) -> AsyncIterator[bytes]:
    """Yield a response as it arrives, up to MAX_RELAYED_BYTES; raise CompletionError."""
    size = 0
    try:
        while data := await response.content.readany():
            size += len(data)
            if size > MAX_RELAYED_BYTES:
                raise CompletionUnavailable(f"more than {MAX_RELAYED_BYTES} bytes")
            yield data
    except TimeoutError as error:
        raise CompletionTimeout("Groq fell silent") from error
    except (ClientError, OSError) as error:
        raise CompletionUnavailable(f"in mid-answer: {type(error).__name__}") from error


async def _read(response: ClientResponse) -> bytes:
    async with response:
        return b"".join([data async for data in _pieces(response)])


def _passed_on(response: ClientResponse) -> dict[str, str]:
    return {
        name: value
        for name, value in response.headers.items()
        if name.lower().startswith(PASSED_ON)
    }


def _streamed(turn: Turn, parser: StreamParser, texts: list[str]) -> Message:
    """Return what a stream has said as a message."""
    is_whole = turn.error is None and turn.stop_reason is None and parser.error is None
    answer = answer_message(
        # Half of a call is none.
        {"content": "".join(texts), "tool_calls": parser.tool_calls if is_whole else None},
        model=parser.model,
        tokens=parser.tokens,
        finish_reason=parser.finish_reason if is_whole else BROKEN,
    )
    return answer if is_whole else replace(answer, status=INCOMPLETE)
