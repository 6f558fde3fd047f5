"""Completions through AsyncGroq, within one deadline, with errors of our own."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
import groq
import httpx
import orjson

from groqchat.deadlines import Deadline, Deadlines
from groqchat.errors import (
    CompletionNotConfigured,
    CompletionTimeout,
    CompletionUnavailable,
)
from groqchat.services.groq_errors import completion_error, is_passing, retry_after_s
from groqchat.services.lean_groq import LeanGroq, open_session
from groqchat.services.stream_parser import StreamParser, parse, plausible_tokens
from groqchat.settings import Settings
from groqchat.storage.messages import Spoken

COMPLETIONS_PATH = "/openai/v1/chat/completions"
MODELS_PATH = "/openai/v1/models"
# A user waits this long for a quota to come back; past it the 429 itself is more use.
MAX_RETRY_WAIT_S = 5.0
RETRY_BASE_S = 0.25
RETRY_CAP_S = 4.0
# The stand-in asks for some key, and the SDK will not start without.
OFFLINE_KEY = "offline"

Got = TypeVar("Got")


@dataclass(slots=True, kw_only=True)
class Prompt:
    """What the model is asked: messages in order, and how to answer them."""

    model: str
    messages: Sequence[Spoken]
    system_prompt: str | None = None
    options: dict[str, float | int] = field(default_factory=dict)

    def body(self, **fields: bool) -> bytes:
        """Return the request in Groq's wire format, with further fields of it."""
        messages = self.messages
        if self.system_prompt is not None:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        return orjson.dumps({"model": self.model, "messages": messages, **self.options, **fields})


@dataclass(slots=True, kw_only=True)
class Completion:
    """The model's answer; `tokens` counts prompt and answer, None where Groq did not say."""

    text: str
    model: str
    tokens: int | None
    finish_reason: str
    is_whole: bool = True


class Completions:
    """Asks Groq through one AsyncGroq client; without a client, says so."""

    def __init__(self, client: LeanGroq | None, *, timeout_s: float, max_retries: int) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._deadlines = Deadlines(timeout_s)
        self._max_retries = max_retries

    @property
    def is_configured(self) -> bool:
        """Whether there is a key to ask with."""
        return self._client is not None

    async def complete(self, prompt: Prompt) -> Completion:
        """Return the model's answer within the deadline, or raise CompletionError."""
        body = prompt.body()
        content = await self._ask(lambda client: client.exchange("POST", COMPLETIONS_PATH, body))
        return _completion(content, asked_model=prompt.model)

    async def stream(self, prompt: Prompt, parser: StreamParser) -> AsyncGenerator[str, None]:
        """Yield the model's answer piece by piece, or raise CompletionError.

        The deadline is one for the first byte, and for each pause after it.
        """
        body = prompt.body(stream=True)
        response = await self._ask(lambda client: client.open_stream(COMPLETIONS_PATH, body))
        try:
            async with response:
                while not parser.is_done:
                    data = await response.content.readany()
                    # At the end, what some leave without an end of its line.
                    text = parser.feed(data or b"\n")
                    if text:
                        yield text
                    if parser.error is not None:
                        raise parser.error
                    if not data:
                        break
        except TimeoutError as error:
            # Of an answer that is whole only the mark of its end is missing.
            if parser.finish_reason is None:
                raise CompletionTimeout(f"nothing for {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise CompletionUnavailable(f"in mid-stream: {type(error).__name__}") from error
        if parser.finish_reason is None:
            raise CompletionUnavailable("Groq's stream ended before its answer")

    async def relay(self, body: bytes) -> aiohttp.ClientResponse:
        """Return Groq's response to a body in its wire format, whatever it is, to be closed."""
        return await self._ask(lambda client: client.relay(COMPLETIONS_PATH, body))

    async def models(self) -> bytes:
        """Return Groq's list of models, which needs a good key and nothing else."""
        return await self._ask(lambda client: client.exchange("GET", MODELS_PATH))

    async def _ask(self, send: Callable[[LeanGroq], Awaitable[Got]]) -> Got:
        if self._client is None:
            raise CompletionNotConfigured("GROQ_API_KEY is not set")
        try:
            with self._deadlines.start() as deadline:
                return await self._attempt(self._client, send, deadline)
        except TimeoutError as error:
            raise CompletionTimeout(f"no answer within {self._timeout_s:g} s") from error
        except groq.GroqError as error:
            raise completion_error(error) from error

    async def _attempt(
        self,
        client: LeanGroq,
        send: Callable[[LeanGroq], Awaitable[Got]],
        deadline: Deadline,
    ) -> Got:
        """Send a request until it succeeds, fails for good, or may not be sent again in time."""
        for retries in range(self._max_retries):
            try:
                return await send(client)
            except groq.GroqError as error:
                wait_s = _wait_s(error, retries)
                if wait_s is None or wait_s >= deadline.left_s:
                    raise
            await asyncio.sleep(wait_s)
        return await send(client)


def _wait_s(error: groq.GroqError, retries: int) -> float | None:
    """Return how long to wait before another attempt; None where none is worth it."""
    if not is_passing(error):
        return None
    asked = retry_after_s(error)
    if asked is not None:
        return asked if asked <= MAX_RETRY_WAIT_S else None
    # Jitter keeps clients that failed together from coming back together.
    jitter = random.uniform(1, 2)  # noqa: S311 - no secret
    return min(RETRY_BASE_S * float(2**retries), RETRY_CAP_S) * jitter


def _completion(content: bytes, *, asked_model: str) -> Completion:
    """Return what of Groq's answer we use; the types are looked at, the rest is not."""
    reply = parse(content)
    try:
        choice = reply["choices"][0]
        text = choice["message"].get("content") or ""
        model = reply.get("model") or asked_model
        finish_reason = choice.get("finish_reason") or "stop"
        usage = reply.get("usage") or {}
        tokens = plausible_tokens(usage.get("total_tokens"))
    except (AttributeError, IndexError, KeyError, TypeError):
        raise CompletionUnavailable("Groq's answer is not one") from None
    if not (isinstance(text, str) and isinstance(model, str) and isinstance(finish_reason, str)):
        raise CompletionUnavailable("Groq's answer has no text")
    return Completion(text=text, model=model, tokens=tokens, finish_reason=finish_reason)


@asynccontextmanager
async def open_completions(settings: Settings, base_url: str) -> AsyncIterator[Completions]:
    """Open the one client of the process; with no key, one that says so."""
    key = settings.groq_api_key
    if key is None and not settings.is_offline:
        yield Completions(None, timeout_s=settings.groq_timeout_s, max_retries=0)
        return
    async with (
        open_session(settings.max_turns_in_flight) as session,
        LeanGroq(
            session,
            api_key=key.get_secret_value() if key else OFFLINE_KEY,
            base_url=base_url,
            timeout=httpx.Timeout(settings.groq_timeout_s, connect=settings.groq_connect_timeout_s),
        ) as client,
    ):
        yield Completions(
            client, timeout_s=settings.groq_timeout_s, max_retries=settings.groq_max_retries
        )
