"""Groq's models: asked for in the background, the last good answer kept."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from groqchat.background import beside
from groqchat.errors import CompletionError, CompletionUnavailable, UnknownModel
from groqchat.services.completions import Completions
from groqchat.services.stream_parser import parse
from groqchat.storage.messages import iso_time

# Groq adds a model every few weeks.
REFRESH_S = 600.0
# Where the list is missing or Groq is away, it is asked for again so soon.
RETRY_S = 30.0
# A model that is not on a list so young is taken for unknown.
RECENT_S = 30.0
MICROS_PER_S = 1_000_000

log = logging.getLogger(__name__)


class ModelCatalog:
    """The models that may be used: those that Groq lists, of these the allowed ones."""

    def __init__(self, completions: Completions, allowed: Sequence[str]) -> None:
        self._completions = completions
        self._allowed = frozenset(allowed)
        self._models: list[dict[str, Any]] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._names: frozenset[str] = frozenset()
        # When it was last asked for, in vain or not.
        self._asked = -RECENT_S
        self.refreshed_at: str | None = None

    async def models(self) -> list[dict[str, Any]]:
        """Return the models as Groq lists them; CompletionError where there is no list yet."""
        if self._models is None:
            await self._refresh_together()
        return self.known

    async def _refresh_together(self) -> None:
        """Refresh the list; many who ask at once wait for one answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._refresh())
        await asyncio.shield(self._asking)

    def admits(self, model: str | None) -> bool:
        """Tell whether Groq lists a model, or may for all that is known here."""
        return model is None or not self._names or model in self._names

    async def check(self, model: str) -> None:
        """Raise UnknownModel for a model that Groq does not list, not even by now."""
        if time.monotonic() - self._asked > RECENT_S:
            with suppress(CompletionError):
                await self._refresh_together()
        if not self.admits(model):
            raise UnknownModel("not in Groq's list", param="model")

    @property
    def known(self) -> list[dict[str, Any]]:
        """The models of the last good answer, none before there was one."""
        return self._models or []

    @asynccontextmanager
    async def kept_fresh(self) -> AsyncIterator[None]:
        """Refresh the list within the block, where there is a key to ask with."""
        if not self._completions.is_configured:
            yield
            return
        async with beside(self._refresh_for_ever()):
            yield
        if self._asking is not None:
            self._asking.cancel()

    async def _refresh_for_ever(self) -> None:
        while True:
            wait_s = RETRY_S
            try:
                await self._refresh()
                wait_s = REFRESH_S
            except CompletionError as error:
                log.warning("the list of models cannot be had: %s", error)
            except Exception:
                log.exception("the list of models cannot be had")
            await asyncio.sleep(wait_s)

    async def _refresh(self) -> None:
        try:
            reply = parse(await self._completions.models())
        finally:
            self._asked = time.monotonic()
        data = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(data, list):
            raise CompletionUnavailable("Groq's list of models is not one")
        self._models = [
            model
            for model in data
            if isinstance(model, dict)
            and isinstance(model.get("id"), str)
            and (not self._allowed or model["id"] in self._allowed)
        ]
        self._names = frozenset(model["id"] for model in self._models)
        self.refreshed_at = iso_time(int(time.time() * MICROS_PER_S))
