"""A request to Groq whose caller is cancelled: nothing of it continues."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from groqchat.errors import CompletionTimeout
from groqchat.retry import Backoff
from groqchat.services.groq import retries
from groqchat.services.groq.client import GroqClient, open_groq_client
from groqchat.services.groq.completions import Prompt, StreamParser
from groqchat.settings import Settings
from tests.support.raw_groq import STREAM_HEAD, RawGroq, Respond, chunked, event, whole

PROMPT = Prompt(model="m", messages=[{"role": "user", "content": "x"}])
LONG = Backoff(base_s=3.0, cap_s=3.0)


@asynccontextmanager
async def open_client(url: str, **changes: Any) -> AsyncIterator[GroqClient]:
    settings = Settings(groq_api_key=SecretStr("k"), groq_base_url=url, **changes)
    async with open_groq_client(settings, url) as client:
        yield client


async def complete(client: GroqClient) -> None:
    await client.complete(PROMPT)


async def stream(client: GroqClient) -> None:
    async for _ in client.stream(PROMPT, StreamParser("m")):
        pass


async def fail(writer: asyncio.StreamWriter) -> None:
    writer.write(whole(b"{}", status="503 Service Unavailable"))


async def limit(writer: asyncio.StreamWriter) -> None:
    writer.write(whole(b"{}", "Retry-After: 3", status="429 Too Many Requests"))


async def hang(_: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def pause(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(event("Hi")))
    await asyncio.Event().wait()


def client_tasks() -> set[str]:
    """Return the tasks that are neither the test nor connections of the server."""
    return {
        repr(task)
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task() and "RawGroq" not in repr(task)
    }


@pytest.mark.parametrize(
    ("send", "respond"),
    [(complete, fail), (complete, limit), (complete, hang), (stream, fail), (stream, pause)],
    ids=lambda function: function.__name__,
)
async def test_a_cancelled_request_sends_nothing_more_and_leaves_no_task(
    send: Callable[[GroqClient], Awaitable[None]],
    respond: Respond,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "BACKOFF", LONG)
    async with RawGroq(respond).serve() as groq, open_client(groq.url) as client:
        request = asyncio.ensure_future(send(client))
        async with asyncio.timeout(5):
            while not groq.bodies:
                await asyncio.sleep(0.01)
        # The response arrives, and the client waits for its retry or for the next part.
        await asyncio.sleep(0.1)
        assert not request.done()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.sleep(0.05)
        assert client_tasks() == set()
        assert len(groq.bodies) == 1


@pytest.mark.parametrize("send", [complete, stream], ids=lambda function: function.__name__)
async def test_a_name_resolution_that_hangs_is_limited_by_the_connect_timeout(
    send: Callable[[GroqClient], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang_on_name(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hang_on_name)
    changes = {"groq_connect_timeout_s": 0.2, "groq_max_retries": 0}
    async with open_client("http://groq.test", **changes) as client, asyncio.timeout(5):
        with pytest.raises(CompletionTimeout):
            await send(client)
