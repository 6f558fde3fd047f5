"""Completions through AsyncGroq, within one deadline, with errors of our own."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import aiohttp
import groq
import httpx
from groq import AsyncGroq
from httpx_aiohttp import AiohttpTransport
from pydantic import BaseModel, Field, ValidationError, field_validator
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential_jitter,
)

from groqchat.errors import (
    CompletionNotConfigured,
    CompletionTimeout,
    CompletionUnavailable,
)
from groqchat.services.groq_errors import completion_error, is_passing, retry_after_s
from groqchat.settings import Settings
from groqchat.storage.messages import Message

COMPLETIONS_PATH = "/openai/v1/chat/completions"
MODELS_PATH = "/openai/v1/models"
# A user waits this long for a quota to come back; past it the 429 itself is more use.
MAX_RETRY_WAIT_S = 5.0
RETRY_BASE_S = 0.25
RETRY_CAP_S = 4.0
# Longer than the pauses in most traffic, shorter than what balancers on the way keep open.
KEEPALIVE_S = 55.0
# More than any conversation can use, and what JSON numbers carry exactly.
MAX_TOKENS = 2**53
# The stand-in asks for some key, and the SDK will not start without.
OFFLINE_KEY = "offline"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is asked: messages in order, and how to answer them."""

    model: str
    messages: Sequence[Message]
    system_prompt: str | None = None
    options: dict[str, float | int] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return the request in Groq's wire format."""
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return {"model": self.model, "messages": messages, **self.options}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The model's answer; `tokens` counts prompt and answer, None where Groq did not say."""

    text: str
    model: str
    tokens: int | None
    finish_reason: str


class _ReplyMessage(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _ReplyMessage
    finish_reason: str | None = None


class _Usage(BaseModel):
    total_tokens: int | None = None

    @field_validator("total_tokens")
    @classmethod
    def _absurd_is_unknown(cls, tokens: int | None) -> int | None:
        return tokens if tokens is not None and 0 <= tokens <= MAX_TOKENS else None


class _Reply(BaseModel):
    """The part of Groq's answer that we use."""

    model: str | None = None
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


class Completions:
    """Asks Groq through one AsyncGroq client; without a client, says so."""

    def __init__(self, client: AsyncGroq | None, *, timeout_s: float, max_retries: int) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._max_retries = max_retries

    @property
    def is_configured(self) -> bool:
        """Whether there is a key to ask with."""
        return self._client is not None

    async def complete(self, prompt: Prompt) -> Completion:
        """Return the model's answer within the deadline, or raise CompletionError."""
        response = await self._ask("POST", COMPLETIONS_PATH, prompt.body())
        return _completion(response, asked_model=prompt.model)

    async def check(self) -> None:
        """Ask for the list of models, which needs a good key and nothing else."""
        await self._ask("GET", MODELS_PATH, None)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        client = self._client
        if client is None:
            raise CompletionNotConfigured("GROQ_API_KEY is not set")

        async def attempt() -> httpx.Response:
            if method == "GET":
                return await client.get(path, cast_to=httpx.Response)
            return await client.post(path, body=body, cast_to=httpx.Response)

        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._retrying()(attempt)
        except TimeoutError as error:
            raise CompletionTimeout(f"no answer within {self._timeout_s:g} s") from error
        except groq.GroqError as error:
            raise completion_error(error) from error

    def _retrying(self) -> AsyncRetrying:
        return AsyncRetrying(
            stop=stop_after_attempt(self._max_retries + 1) | stop_before_delay(self._timeout_s),
            wait=_wait_s,
            retry=retry_if_exception(_is_worth_a_retry),
            reraise=True,
        )


_backoff = wait_exponential_jitter(multiplier=RETRY_BASE_S, max=RETRY_CAP_S, jitter=RETRY_BASE_S)


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = retry_after_s(error) if error else None
    return _backoff(state) if asked is None else asked


def _is_worth_a_retry(error: BaseException) -> bool:
    return is_passing(error) and (retry_after_s(error) or 0) <= MAX_RETRY_WAIT_S


def _completion(response: httpx.Response, *, asked_model: str) -> Completion:
    try:
        reply = _parse(response.content)
    except ValidationError as error:
        problems = ", ".join(problem["type"] for problem in error.errors(include_input=False))
        raise CompletionUnavailable(f"Groq's answer is not one: {problems}") from None
    choice = reply.choices[0]
    return Completion(
        text=choice.message.content or "",
        model=reply.model or asked_model,
        tokens=reply.usage.total_tokens if reply.usage else None,
        finish_reason=choice.finish_reason or "stop",
    )


def _parse(body: bytes) -> _Reply:
    """Parse Groq's answer; half a surrogate pair, which models do produce, becomes a `?`."""
    try:
        return _Reply.model_validate_json(body)
    except ValidationError:
        try:
            text = json.dumps(json.loads(body), ensure_ascii=False)
        except (ValueError, RecursionError):
            text = ""
        return _Reply.model_validate_json(text.encode(errors="replace"))


@asynccontextmanager
async def open_completions(settings: Settings, base_url: str) -> AsyncIterator[Completions]:
    """Open the one client of the process; with no key, one that says so."""
    key = settings.groq_api_key
    if key is None and not settings.is_offline:
        yield Completions(None, timeout_s=settings.groq_timeout_s, max_retries=0)
        return
    connector = aiohttp.TCPConnector(
        # Every turn in flight holds one connection.
        limit=settings.max_turns_in_flight,
        keepalive_timeout=KEEPALIVE_S,
    )
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session,
        httpx.AsyncClient(transport=AiohttpTransport(client=session)) as http,
        AsyncGroq(
            api_key=key.get_secret_value() if key else OFFLINE_KEY,
            base_url=base_url,
            http_client=http,
            # The SDK would sleep for as long as Groq asks, within the call.
            max_retries=0,
            timeout=httpx.Timeout(settings.groq_timeout_s, connect=settings.groq_connect_timeout_s),
        ) as client,
    ):
        yield Completions(
            client, timeout_s=settings.groq_timeout_s, max_retries=settings.groq_max_retries
        )
