"""Idle connections to Groq that are closed or forgotten by the other side."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_groq import COMPLETION, DONE, RawGroq, event, whole

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (f"{BASE}/chat", {"message": "Hello"}),
    "chat stream": (f"{BASE}/chat", {"message": "Hello", "stream": True}),
    "openai": (
        "/openai/v1/chat/completions",
        {"model": "m", "messages": [{"role": "user", "content": "Hello"}]},
    ),
}
STREAM = whole(event("Hi") + event(None, "stop") + DONE).replace(
    b"application/json", b"text/event-stream"
)


class Peer:
    """Answers when `expected` connections are open; after `forget`, each of them fails."""

    def __init__(self, *, is_stream: bool) -> None:
        self.expected = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.stale: set[asyncio.StreamWriter] = set()
        self.failures = 0
        self.answer = STREAM if is_stream else whole(COMPLETION)
        self.arrived = asyncio.Condition()

    async def respond(self, writer: asyncio.StreamWriter) -> None:
        if writer in self.stale:
            self.failures += 1
            writer.transport.abort()
            return
        self.open.add(writer)
        async with self.arrived:
            self.arrived.notify_all()
            await self.arrived.wait_for(lambda: len(self.open) >= self.expected)
        writer.write(self.answer)

    def forget(self) -> None:
        """Let every connection fail with its next request."""
        self.stale, self.open, self.expected = self.open, set(), 0


async def send(api: ClientSession, kind: str) -> int:
    path, body = REQUESTS[kind]
    async with api.post(path, json=body) as response:
        assert b'"error"' not in await response.read()
        return response.status


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("retries", [0, 2])
async def test_a_request_on_a_stale_connection_is_repeated_on_a_new_one(
    serve: Serve, kind: str, retries: int
) -> None:
    peer = Peer(is_stream=kind == "chat stream")
    async with RawGroq(peer.respond).serve() as raw:
        api = await serve(groq_base_url=raw.url, groq_max_retries=retries)
        peer.expected = 8
        assert await asyncio.gather(*(send(api, kind) for _ in range(8))) == [200] * 8
        peer.forget()
        assert [await send(api, kind) for _ in range(3)] == [200] * 3
        assert peer.failures >= 1


async def test_a_request_that_fails_on_a_new_connection_is_not_repeated(serve: Serve) -> None:
    async def fail(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with RawGroq(fail).serve() as raw:
        api = await serve(groq_base_url=raw.url, groq_max_retries=0)
        for _ in range(2):
            raw.bodies.clear()
            # The first one may reuse the connection of the list of models.
            async with api.post(f"{BASE}/chat", json={"message": "Hello"}) as response:
                assert response.status == 502
        assert len(raw.bodies) == 1


async def test_a_response_that_has_begun_and_breaks_is_not_requested_again(serve: Serve) -> None:
    whole_answers = 1

    async def respond(writer: asyncio.StreamWriter) -> None:
        nonlocal whole_answers
        answer = whole(COMPLETION)
        if whole_answers:
            whole_answers -= 1
            writer.write(answer)
            return
        writer.write(answer[:-10])
        await writer.drain()
        writer.transport.abort()

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url, groq_max_retries=0)
        assert await send(api, "chat") == 200
        raw.bodies.clear()
        async with api.post(f"{BASE}/chat", json={"message": "Hello"}) as response:
            assert response.status == 502
        assert len(raw.bodies) == 1
