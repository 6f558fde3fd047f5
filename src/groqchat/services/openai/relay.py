"""Streams of Groq, read in complete events, and the relay that needs no task of its own."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self

from aiohttp import ClientError, ClientResponse

from groqchat import sse
from groqchat.errors import CompletionTimeout, CompletionUnavailable, GroqChatError
from groqchat.services.groq.aiohttp_internals import read_available
from groqchat.services.groq.coalescing import Coalescing
from groqchat.services.groq.completions import MAX_EVENT_BYTES, StreamParser, parse_json
from groqchat.services.groq.errors import strip_tracebacks
from groqchat.services.groq.redaction import redact
from groqchat.services.openai.responses import MAX_RESPONSE_BYTES

DONE = b"[DONE]"
LINE_END = rb"(?>\r\n|\n|\r)"
# The event that ends a stream. An answer can contain `[DONE]` too, but not at the start of a line.
DONE_EVENT = re.compile(
    rb"(?:^|(?<=[\r\n]))data:[ \t]*\[DONE\][ \t]*%b(?:[^\r\n]+%b)*?%b" % ((LINE_END,) * 3)
)
ERROR_FIELD = b'"error"'
EVENT_END = re.compile(b"|".join(sse.EVENT_ENDS))


class GroqEvents(AsyncIterator[bytes]):
    """The events of a streamed response, up to `[DONE]`.

    Each item consists of complete events, so a ping or an error never splits one. Nothing is read
    before the caller asks for it: if the caller is slow, aiohttp stops reading from Groq.
    """

    def __init__(self, response: ClientResponse, coalescing: Coalescing) -> None:
        self.response = response
        self._pace = coalescing.start(response)
        self.is_done = False
        self._has_error = False
        self._buffer = sse.EventBuffer()
        self._size = 0
        # The events that were returned last.
        self._sent = b""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next events; raise CompletionError if the stream breaks off."""
        if self._sent and not self.is_done:
            await self._pace.wait(self._sent)
        while not self.is_done:
            try:
                chunk = await self._read()
            except GroqChatError:
                # The client expects one error at most.
                if self._has_error:
                    break
                raise
            events = self._buffer.feed(chunk) if chunk else self._buffer.flush()
            if self._buffer.pending_bytes > MAX_EVENT_BYTES:
                raise CompletionUnavailable(f"an event exceeds {MAX_EVENT_BYTES} bytes")
            if events:
                self._sent = events
                return self._inspect(events)
            if not chunk:
                self._check_end()
                break
        raise StopAsyncIteration

    def fail(self, error: GroqChatError) -> None:
        """Let the next read raise an error, and a read that waits at once."""
        self.response.content.set_exception(error)

    def close(self) -> None:
        """End the stream. The owner of the relay releases the response."""
        self._pace.close()

    async def _read(self) -> bytes:
        try:
            chunk = await read_available(self.response.content)
        except TimeoutError as error:
            raise CompletionTimeout("no data during the answer") from strip_tracebacks(error)
        except (ClientError, OSError) as error:
            reason = f"during the answer: {type(error).__name__}"
            raise CompletionUnavailable(reason) from strip_tracebacks(error)
        self._size += len(chunk)
        if self._size > MAX_RESPONSE_BYTES:
            raise CompletionUnavailable(f"more than {MAX_RESPONSE_BYTES} bytes")
        return chunk

    def _inspect(self, events: bytes) -> bytes:
        """Note the end of the answer; return the events up to it, errors redacted."""
        if DONE in events and (end := DONE_EVENT.search(events)):
            self.is_done = True
            # Not a part of the answer: clients stop reading at `[DONE]`.
            events = events[: end.end()]
        if ERROR_FIELD in events and _has_error(events):
            self._has_error = True
            return redact(events)
        return events

    def _check_end(self) -> None:
        """Raise CompletionError if a relay must not end here."""


class Relay(GroqEvents):
    """A stream that the task of a request sends to its client.

    Nothing of it is stored, so it ends with its client.
    """

    def __init__(
        self, response: ClientResponse, coalescing: Coalescing, *, timeout_s: float
    ) -> None:
        super().__init__(response, coalescing)
        error = CompletionTimeout(f"not complete within {timeout_s:g} s")
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self.fail, error)

    def close(self) -> None:
        """Stop the timer. The owner of the relay releases the response."""
        super().close()
        self._timer.cancel()
        error = self.response.content.exception()
        if error is not None:
            # It refers to the response, which refers to it.
            strip_tracebacks(error)

    def _check_end(self) -> None:
        if not self._has_error:
            raise CompletionUnavailable("the stream ended before the answer")


def _has_error(events: bytes) -> bool:
    """Return whether an event is an error of Groq; an answer can contain the word too."""
    for payload in sse.DataParser().feed(events):
        with suppress(CompletionUnavailable):
            data = parse_json(payload)
            if isinstance(data, dict) and data.get("error"):
                return True
    return False


def events_of_chunks(events: bytes) -> bytes:
    """Return the complete events that precede the first event that is not a chunk."""
    parser = StreamParser("")
    end = 0
    for found in EVENT_END.finditer(events):
        parser.feed(events[end : found.end()])
        if parser.error is not None:
            break
        end = found.end()
    return events[:end]


def without_done(events: bytes) -> bytes:
    """Return complete events without the `[DONE]` at their end."""
    done = DONE_EVENT.search(events)
    # The event may have other fields before the data.
    return events[: sse.end_of_events(events[: done.start()])] if done else events
