"""The list of models: one request for all callers, and no long wait for a Groq that hangs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
import pytest

from groqchat.errors import CompletionTimeout, CompletionUnavailable, UnknownModel
from groqchat.services.groq import model_catalog
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.model_catalog import ModelCatalog

FAR_S = 60.0


class ListServer:
    """A Groq client whose list of models arrives when the test permits it."""

    def __init__(self, *models: str) -> None:
        self.models = list(models)
        self.error: Exception | None = None
        self.is_configured = True
        self.calls = 0
        self.cancelled = 0
        self.permission = asyncio.Event()
        self.permission.set()

    async def list_models(self) -> bytes:
        self.calls += 1
        try:
            await self.permission.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return orjson.dumps({"data": [{"id": model} for model in self.models]})


@pytest.fixture
def server() -> ListServer:
    return ListServer("known")


@pytest.fixture
def catalog(server: ListServer, monkeypatch: pytest.MonkeyPatch) -> ModelCatalog:
    """A catalog that considers each list too old."""
    monkeypatch.setattr(model_catalog, "MAX_AGE_S", -1.0)
    return ModelCatalog(cast("GroqClient", server), ())


@asynccontextmanager
async def hanging(server: ListServer) -> AsyncIterator[None]:
    server.permission.clear()
    yield
    server.permission.set()


async def check(catalog: ModelCatalog, model: str) -> str:
    try:
        await catalog.check(model)
    except UnknownModel:
        return "unknown"
    return "known"


async def test_concurrent_look_ups_share_one_request(
    catalog: ModelCatalog, server: ListServer
) -> None:
    assert await catalog.models() == [{"id": "known"}]
    async with hanging(server):
        checks = [asyncio.create_task(check(catalog, name)) for name in ["new", "other"] * 50]
        await asyncio.sleep(0)
        server.models.append("new")
    assert await asyncio.gather(*checks) == ["known", "unknown"] * 50
    assert server.calls == 2


async def test_a_look_up_shares_the_request_of_the_background_task(server: ListServer) -> None:
    catalog = ModelCatalog(cast("GroqClient", server), ())
    async with hanging(server), catalog.refreshing():
        waiting = asyncio.create_task(catalog.models())
        await asyncio.sleep(0)
        server.permission.set()
        assert await waiting == [{"id": "known"}]
    assert server.calls == 1


async def test_a_look_up_has_a_short_deadline_if_groq_hangs(
    catalog: ModelCatalog, server: ListServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await catalog.models()
    monkeypatch.setattr(model_catalog, "LOOKUP_TIMEOUT_S", 0.1)
    async with hanging(server):
        started = time.monotonic()
        checks = await asyncio.gather(*(check(catalog, "new") for _ in range(300)))
        assert time.monotonic() - started < 5
        assert set(checks) == {"unknown"}
        assert server.calls == 2


async def test_after_a_look_up_that_failed_the_next_requests_do_not_wait(
    catalog: ModelCatalog, server: ListServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await catalog.models()
    monkeypatch.setattr(model_catalog, "LOOKUP_TIMEOUT_S", 0.05)
    async with hanging(server):
        assert await check(catalog, "new") == "unknown"
        monkeypatch.setattr(model_catalog, "MAX_AGE_S", FAR_S)
        monkeypatch.setattr(model_catalog, "LOOKUP_TIMEOUT_S", FAR_S)
        async with asyncio.timeout(5):
            assert await check(catalog, "new") == "unknown"


async def test_a_list_that_arrives_after_the_deadline_is_used(
    catalog: ModelCatalog, server: ListServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_catalog, "LOOKUP_TIMEOUT_S", 0.05)
    async with hanging(server):
        with pytest.raises(CompletionTimeout, match=r"no list of models within 0\.05 s"):
            await catalog.models()
    async with asyncio.timeout(5):
        while not catalog.cached:
            await asyncio.sleep(0.01)
    assert server.calls == 1
    assert server.cancelled == 0


async def test_a_failure_after_the_deadline_is_not_reported_as_lost(
    catalog: ModelCatalog, server: ListServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    monkeypatch.setattr(model_catalog, "LOOKUP_TIMEOUT_S", 0.05)
    server.error = CompletionUnavailable("down")
    async with hanging(server):
        with pytest.raises(CompletionTimeout):
            await catalog.models()
    await asyncio.sleep(0.02)
    monkeypatch.setattr(model_catalog, "LOOKUP_TIMEOUT_S", FAR_S)
    with pytest.raises(CompletionUnavailable):
        await catalog.models()
    assert reported == []


async def test_a_caller_that_is_cancelled_does_not_cancel_the_request_of_others(
    catalog: ModelCatalog, server: ListServer
) -> None:
    async with hanging(server):
        first = asyncio.create_task(catalog.models())
        second = asyncio.create_task(catalog.models())
        await asyncio.sleep(0)
        first.cancel()
    assert await second == [{"id": "known"}]
    assert server.cancelled == 0


@pytest.mark.parametrize("is_configured", [True, False])
async def test_the_exit_ends_a_running_request(
    catalog: ModelCatalog, server: ListServer, *, is_configured: bool
) -> None:
    server.is_configured = is_configured
    server.permission.clear()
    async with catalog.refreshing():
        waiting = asyncio.create_task(catalog.models())
        await asyncio.sleep(0.01)
    assert server.calls == server.cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await waiting
