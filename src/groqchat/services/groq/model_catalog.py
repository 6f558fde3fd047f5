"""The model catalog: Groq's list of models, refreshed in the background."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import groq
from pydantic_core import PydanticSerializationError, to_json

from groqchat.background import background_task
from groqchat.errors import (
    CompletionError,
    CompletionTimeout,
    CompletionUnavailable,
    ModelNotFound,
    UnknownModel,
)
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import parse_json
from groqchat.storage.message_ids import MICROS_PER_S, iso_time

# Groq adds a model every few weeks.
REFRESH_S = 600.0
# The interval if the last refresh failed.
RETRY_S = 30.0
# `check` refreshes the list if the last attempt to do this is older than this.
MAX_AGE_S = 30.0
# A request waits no longer than this for the list, which Groq usually sends within 0.2 s. The
# refresh continues, within the deadline of the first byte.
LOOKUP_TIMEOUT_S = 5.0

KEY_ERRORS = (groq.AuthenticationError, groq.PermissionDeniedError)

log = logging.getLogger(__name__)


class ModelCatalog:
    """The models that clients may use: those that Groq lists and GROQ_ALLOWED_MODELS allows."""

    def __init__(self, client: GroqClient, allowed: Sequence[str]) -> None:
        self._groq = client
        self._allowed = frozenset(allowed)
        self._models: list[dict[str, Any]] | None = None
        self._names: frozenset[str] = frozenset()
        self._refresh_task: asyncio.Task[None] | None = None
        # The time of the last refresh, successful or not.
        self._last_attempt = -MAX_AGE_S
        self.refreshed_at: str | None = None
        # The outcome and the time of the last request for the list.
        self.groq_state = "not checked yet"
        self.checked_at: str | None = None

    @property
    def cached(self) -> list[dict[str, Any]]:
        """The models of the last successful refresh, empty before the first."""
        return self._models or []

    async def models(self) -> list[dict[str, Any]]:
        """Return the models as Groq lists them; CompletionError if no list is available yet."""
        if self._models is None:
            await self._look_up()
        return self.cached

    async def find(self, name: str) -> dict[str, Any]:
        """Return a model as Groq lists it; raise ModelNotFound, or CompletionError without a list.

        If the list lacks the model and is older than MAX_AGE_S, it is refreshed first.
        """
        await self.models()
        if name not in self._names:
            with suppress(UnknownModel):
                await self.check(name)
        for model in self.cached:
            if model["id"] == name:
                return model
        raise ModelNotFound(param="model")

    def may_exist(self, model: str | None) -> bool:
        """Return whether the list contains a model; true for every model if the list is empty."""
        return model is None or not self._names or model in self._names

    async def check(self, model: str) -> None:
        """Refresh a list that is older than MAX_AGE_S; raise UnknownModel if it lacks the model.

        If Groq does not send the list within LOOKUP_TIMEOUT_S, the last list applies.
        """
        if time.monotonic() - self._last_attempt > MAX_AGE_S:
            with suppress(CompletionError):
                await self._look_up()
        if not self.may_exist(model):
            raise UnknownModel("not in Groq's list", param="model")

    @asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Refresh the list regularly until the context exits, if an API key is configured."""
        try:
            if not self._groq.is_configured:
                yield
                return
            async with background_task(
                "refresh the list of models", self._refresh_step, failure_delay_s=RETRY_S
            ):
                yield
        finally:
            if self._refresh_task is not None:
                self._refresh_task.cancel()
                await asyncio.wait([self._refresh_task])

    async def _refresh_step(self) -> float:
        try:
            await self._refresh_once()
        except CompletionError as error:
            log.warning("could not refresh the list of models: %s", error)
            return RETRY_S
        return REFRESH_S

    async def _look_up(self) -> None:
        """Refresh the list on behalf of a request; CompletionTimeout after LOOKUP_TIMEOUT_S."""
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                await self._refresh_once()
        except TimeoutError as error:
            # The next requests do not wait for a list that Groq does not send.
            self._last_attempt = time.monotonic()
            detail = f"no list of models within {LOOKUP_TIMEOUT_S:g} s"
            raise CompletionTimeout(detail) from error

    async def _refresh_once(self) -> None:
        """Refresh the list; concurrent callers share one request, which none of them cancels."""
        if self._refresh_task is None or self._refresh_task.done():
            self._refresh_task = asyncio.create_task(self._refresh())
            self._refresh_task.add_done_callback(_retrieve_error)
        await asyncio.shield(self._refresh_task)

    async def _refresh(self) -> None:
        try:
            models = parse_models(await self._groq.list_models())
            self.groq_state = "ok"
        except CompletionError as error:
            is_rejected = isinstance(error.__cause__, KEY_ERRORS)
            self.groq_state = "rejects the API key" if is_rejected else f"failing: {error.code}"
            raise
        finally:
            self._last_attempt = time.monotonic()
            self.checked_at = iso_time(int(time.time() * MICROS_PER_S))
        self._models = [
            model for model in models if not self._allowed or model["id"] in self._allowed
        ]
        self._names = frozenset(model["id"] for model in self._models)
        self.refreshed_at = iso_time(int(time.time() * MICROS_PER_S))


def parse_models(content: bytes) -> list[dict[str, Any]]:
    """Return the models in a response body of Groq; raise CompletionUnavailable without a list."""
    reply = parse_json(content)
    data = reply.get("data") if isinstance(reply, dict) else None
    if isinstance(data, list):
        models = [model for model in data if _is_model(model)]
        if models or not data:
            return models
    raise CompletionUnavailable("Groq's response is not a list of models")


def _is_model(model: Any) -> bool:
    """Return whether an entry of the list has an id and can be a part of a JSON response."""
    if not isinstance(model, dict) or not isinstance(model.get("id"), str):
        return False
    try:
        # pydantic writes fewer levels than `parse_json` reads.
        to_json({"data": [model]})
    except PydanticSerializationError:
        return False
    return True


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Keep asyncio from logging the error of a refresh for which no caller waits any more."""
    if not task.cancelled():
        task.exception()
