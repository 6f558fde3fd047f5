"""Completions through AsyncGroq, within one deadline, with errors of our own."""

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

import groq
import httpx
import orjson
from pydantic import BaseModel, Field, ValidationError, field_validator

from groqchat.errors import (
    CompletionNotConfigured,
    CompletionTimeout,
    CompletionUnavailable,
)
from groqchat.services.groq_errors import completion_error, is_passing, retry_after_s
from groqchat.services.lean_groq import LeanGroq, open_session
from groqchat.settings import Settings
from groqchat.storage.messages import Spoken

COMPLETIONS_PATH = "/openai/v1/chat/completions"
MODELS_PATH = "/openai/v1/models"
# A user waits this long for a quota to come back; past it the 429 itself is more use.
MAX_RETRY_WAIT_S = 5.0
RETRY_BASE_S = 0.25
RETRY_CAP_S = 4.0
# More than any conversation can use, and what JSON numbers carry exactly.
MAX_TOKENS = 2**53
# The stand-in asks for some key, and the SDK will not start without.
OFFLINE_KEY = "offline"


@dataclass(slots=True, kw_only=True)
class Prompt:
    """What the model is asked: messages in order, and how to answer them."""

    model: str
    messages: Sequence[Spoken]
    system_prompt: str | None = None
    options: dict[str, float | int] = field(default_factory=dict)

    def body(self) -> bytes:
        """Return the request in Groq's wire format."""
        messages = self.messages
        if self.system_prompt is not None:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        return orjson.dumps({"model": self.model, "messages": messages, **self.options})


@dataclass(slots=True, kw_only=True)
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

    def __init__(self, client: LeanGroq | None, *, timeout_s: float, max_retries: int) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._max_retries = max_retries

    @property
    def is_configured(self) -> bool:
        """Whether there is a key to ask with."""
        return self._client is not None

    async def complete(self, prompt: Prompt) -> Completion:
        """Return the model's answer within the deadline, or raise CompletionError."""
        content = await self._ask("POST", COMPLETIONS_PATH, prompt.body())
        return _completion(content, asked_model=prompt.model)

    async def check(self) -> None:
        """Ask for the list of models, which needs a good key and nothing else."""
        await self._ask("GET", MODELS_PATH, None)

    async def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        if self._client is None:
            raise CompletionNotConfigured("GROQ_API_KEY is not set")
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                return await self._attempt(self._client, method, path, body, deadline)
        except TimeoutError as error:
            raise CompletionTimeout(f"no answer within {self._timeout_s:g} s") from error
        except groq.GroqError as error:
            raise completion_error(error) from error

    async def _attempt(
        self,
        client: LeanGroq,
        method: str,
        path: str,
        body: bytes | None,
        deadline: asyncio.Timeout,
    ) -> bytes:
        """Send a request until it succeeds, fails for good, or may not be sent again in time."""
        for retries in range(self._max_retries):
            try:
                return await client.exchange(method, path, body)
            except groq.GroqError as error:
                wait_s = _wait_s(error, retries)
                if wait_s is None or wait_s >= _left_s(deadline):
                    raise
            await asyncio.sleep(wait_s)
        return await client.exchange(method, path, body)


def _left_s(deadline: asyncio.Timeout) -> float:
    when = deadline.when()
    return math.inf if when is None else when - asyncio.get_running_loop().time()


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
    try:
        reply = _parse(content)
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
