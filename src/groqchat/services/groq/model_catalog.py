"""The model catalog: Groq's list of models, refreshed in the background."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from groqchat.background import background_task
from groqchat.errors import CompletionError, CompletionUnavailable, UnknownModel
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import parse_json
from groqchat.storage.message_ids import MICROS_PER_S, iso_time

# Groq adds a model every few weeks.
REFRESH_S = 600.0
# The interval if the last refresh failed.
RETRY_S = 30.0
# `check` refreshes the list if the last attempt to do this is older than this.
MAX_AGE_S = 30.0

log = logging.getLogger(__name__)


class ModelCatalog:
    """The models that clients may use: those that Groq lists and GROQ_ALLOWED_MODELS allows."""

    def __init__(self, groq: GroqClient, allowed: Sequence[str]) -> None:
        self._groq = groq
        self._allowed = frozenset(allowed)
        self._models: list[dict[str, Any]] | None = None
        self._names: frozenset[str] = frozenset()
        self._refresh_task: asyncio.Task[None] | None = None
        # The time of the last refresh, successful or not.
        self._last_attempt = -MAX_AGE_S
        self.refreshed_at: str | None = None

    @property
    def cached(self) -> list[dict[str, Any]]:
        """The models of the last successful refresh, empty before the first."""
        return self._models or []

    async def models(self) -> list[dict[str, Any]]:
        """Return the models as Groq lists them; CompletionError if no list is available yet."""
        if self._models is None:
            await self._refresh_once()
        return self.cached

    def may_exist(self, model: str | None) -> bool:
        """Return whether the list contains a model; true for every model if the list is empty."""
        return model is None or not self._names or model in self._names

    async def check(self, model: str) -> None:
        """Refresh a list that is older than MAX_AGE_S; raise UnknownModel if it lacks the model."""
        if time.monotonic() - self._last_attempt > MAX_AGE_S:
            with suppress(CompletionError):
                await self._refresh_once()
        if not self.may_exist(model):
            raise UnknownModel("not in Groq's list", param="model")

    @asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Refresh the list regularly until the context exits, if an API key is configured."""
        if not self._groq.is_configured:
            yield
            return
        try:
            async with background_task(
                "refresh the list of models", self._refresh_step, failure_delay_s=RETRY_S
            ):
                yield
        finally:
            if self._refresh_task is not None:
                self._refresh_task.cancel()

    async def _refresh_step(self) -> float:
        try:
            await self._refresh()
        except CompletionError as error:
            log.warning("could not refresh the list of models: %s", error)
            return RETRY_S
        return REFRESH_S

    async def _refresh_once(self) -> None:
        """Refresh the list; concurrent callers share one request."""
        if self._refresh_task is None or self._refresh_task.done():
            self._refresh_task = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refresh_task)

    async def _refresh(self) -> None:
        try:
            reply = parse_json(await self._groq.list_models())
        finally:
            self._last_attempt = time.monotonic()
        data = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(data, list):
            raise CompletionUnavailable("Groq's response is not a list of models")
        self._models = [
            model
            for model in data
            if isinstance(model, dict)
            and isinstance(model.get("id"), str)
            and (not self._allowed or model["id"] in self._allowed)
        ]
        self._names = frozenset(model["id"] for model in self._models)
        self.refreshed_at = iso_time(int(time.time() * MICROS_PER_S))
