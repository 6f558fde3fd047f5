"""Large pages of the history: how many are read at once, and how many wait for their clients."""

import asyncio
import json
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.errors import HistoryUnavailable
from groqchat.runtime import unsent_responses
from groqchat.services.history_store import HistoryStore
from groqchat.storage import page_reads
from groqchat.storage.keys import Command
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.recording_batcher import RecordingBatcher
from tests.support.service import Service
from tests.support.store import TTL_S, new_message, new_store
from tests.test_unread_responses import is_disconnected, unread

LARGE = [new_message("x" * 20_000) for _ in range(60)]
GET = f"GET {BASE}/history/large HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


class HeldBatcher(RecordingBatcher):
    """Transactions wait after the first ones of each read, until `release` is set."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.release = asyncio.Event()
        self.held = 0

    async def _run(self, number: int, commands: Sequence[Command]) -> list[Any]:
        is_second_chunk = any("BYSCORE" in command for command in commands)
        if is_second_chunk:
            self.held += 1
            await self.release.wait()
        return await super()._run(number, commands)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_few_large_pages_are_read_at_once_and_small_ones_do_not_wait(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_reads, "MAX_WAITING", 3)
    batcher = HeldBatcher(redis)
    store = HistoryStore(redis, batcher, ttl_s=TTL_S, timeout_s=5)
    await store.save_messages("large", *LARGE)
    await store.save_messages("small", new_message("Hello"))
    limit = page_reads.MAX_LARGE_READS
    reads = [asyncio.create_task(store.get_history_page("large")) for _ in range(limit + 3)]
    await until(lambda: batcher.held == limit)
    with pytest.raises(HistoryUnavailable, match="too many large pages"):
        await store.get_history_page("large")
    assert [each.content for each in (await store.get_history_page("small")).messages] == ["Hello"]
    assert batcher.held == limit
    batcher.release.set()
    pages = await asyncio.gather(*reads)
    assert [len(page.messages) for page in pages] == [60] * (limit + 3)


async def test_an_unread_page_gives_way_to_a_new_one(
    serve: Serve, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await serve()
    await new_store(redis).save_messages("large", *LARGE)
    page = await read_large(api)
    monkeypatch.setattr(unsent_responses, "MAX_UNSENT_BYTES", int(2.5 * len(page)))
    monkeypatch.setattr(unsent_responses, "MIN_AGE_S", 0.5)
    port = (await api.get("/healthz")).url.port
    assert port is not None
    with unread(port, GET) as first, unread(port, GET) as second:
        # Until the requests of the two clients have arrived.
        while (error := await error_of_page(api)) is None:
            pass
        assert error == (503, "1")
        async with api.get(f"{BASE}/history/small") as small:
            assert small.status == 200
        async with asyncio.timeout(10):
            while await error_of_page(api) is not None:
                await asyncio.sleep(0.05)
            assert await is_disconnected(first) or await is_disconnected(second)


async def error_of_page(api: ClientSession) -> tuple[int, str] | None:
    """Return status and Retry-After if the large page is rejected."""
    async with api.get(f"{BASE}/history/large") as response:
        if response.status == 200:
            await response.read()
            return None
        await assert_error(response, response.status, "overloaded")
        return response.status, response.headers["Retry-After"]


async def read_large(api: ClientSession) -> bytes:
    async with api.get(f"{BASE}/history/large") as response:
        body = await response.read()
    assert len(json.loads(body)["messages"]) == 60
    return body


def test_unread_responses_are_cut_off_with_every_event_loop(tmp_path: Path) -> None:
    limits = "u.MAX_UNSENT_BYTES, u.MIN_AGE_S = 4_000_000, 0.0"
    code = f"import groqchat.runtime.unsent_responses as u; {limits}; from groqchat import __main__"
    program = (sys.executable, "-c", f"{code}; __main__.run()")
    with (
        Service(
            tmp_path, program=program, REDIS_URL="memory:", GROQ_BASE_URL="offline:"
        ) as service,
        ExitStack() as stack,
    ):
        for _ in range(20):
            body = {"message": "x" * 100_000, "session_id": "large", "context": 0}
            assert requests.post(f"{service.url}{BASE}/chat", json=body, timeout=20).ok
        port = int(service.url.rpartition(":")[2])
        clients = []
        for _ in range(4):
            clients.append(stack.enter_context(unread(port, GET)))
            clients[-1].settimeout(20)
            # Its response has begun, before the next one.
            clients[-1].recv(1, socket.MSG_PEEK)
        first = clients[0]
        # The rest of its page never arrives.
        with suppress(ConnectionError):
            while first.recv(65_536):
                pass
