"""Saves that are sent again after a broken connection: they do not restore a deleted session."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.openai_paths import COMPLETIONS_PATH
from groqchat.services.history_store import HistoryStore
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.storage.command_batcher import CommandBatcher, ResentReplies
from groqchat.storage.keys import Command
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.cutting_proxy import CuttingProxy
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.store import new_message
from tests.support.streams import history

SESSION_KEY = b"chat:session:s"
OPENAI_BODY = {
    "model": "openai/gpt-oss-20b",
    "messages": [{"role": "user", "content": "Hello"}],
}


@pytest.fixture
async def proxy(own_redis_server: RedisServer) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(own_redis_server.socket).serve() as proxy:
        yield proxy


@pytest.fixture
async def workers(
    serve: Serve, proxy: CuttingProxy, own_redis_server: RedisServer
) -> list[ClientSession]:
    """Clients of a worker behind the proxy and of a worker with a stable connection."""
    return [
        await serve(redis_url=f"redis://127.0.0.1:{proxy.port}/0"),
        await serve(redis_url=own_redis_server.url()),
    ]


def delete_by(worker: ClientSession, proxy: CuttingProxy) -> None:
    """Delete the session between the execution of the next save and the end of its connection."""

    async def delete() -> None:
        response = await worker.delete(f"{BASE}/history/s")
        assert response.status == 200

    proxy.after_write = delete
    proxy.cut_key = SESSION_KEY


async def chat(api: ClientSession, **fields: Any) -> tuple[str, bool]:
    """Return the text of a turn's response, and its `history_saved`."""
    body = {"message": "Hello", "session_id": "s", **fields}
    response = await api.post(f"{BASE}/chat", json=body)
    assert response.status == 200
    text = await response.text()
    last = text.strip().rpartition("data: ")[2] if fields.get("stream") else text
    return text, json.loads(last)["history_saved"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_user_message_that_is_sent_again_does_not_restore_a_deleted_session(
    workers: list[ClientSession],
    proxy: CuttingProxy,
    stream: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    delete_by(workers[1], proxy)
    _, is_saved = await chat(workers[0], stream=stream)
    assert proxy.cuts == 1
    assert (is_saved, await history(workers[1])) == (False, [])
    sessions = await workers[1].get(f"{BASE}/sessions")
    assert (await sessions.json())["sessions"] == []


async def test_the_messages_of_a_completion_do_not_restore_a_deleted_session(
    workers: list[ClientSession], proxy: CuttingProxy
) -> None:
    delete_by(workers[1], proxy)
    headers = {"X-Session-Id": "s"}
    response = await workers[0].post(COMPLETIONS_PATH, json=OPENAI_BODY, headers=headers)
    assert response.status == 200
    assert proxy.cuts == 1
    saved = response.headers["X-History-Saved"]
    assert (saved, await history(workers[1])) == ("false", [])


@pytest.mark.parametrize("later", [0, 10, 49, 50, 60])
async def test_the_context_of_a_save_that_is_sent_again_precedes_its_message(
    later: int, any_redis: Redis
) -> None:
    class Resending(CommandBatcher):
        """A command batcher whose next transaction is executed twice, with others in between."""

        is_next = False

        def transact(self, commands: Sequence[Command]) -> Any:
            return asyncio.ensure_future(self._run(commands))

        async def _run(self, commands: Sequence[Command]) -> list[Any]:
            replies = await super().transact(commands)
            if self.is_next:
                self.is_next = False
                await store.save_messages("s", *(new_message(f"later {n}") for n in range(later)))
                return ResentReplies(await super().transact(commands))
            return replies

    async with Resending(any_redis, timeout_s=5) as batcher:
        store = HistoryStore(any_redis, batcher, ttl_s=1000, timeout_s=5)
        earlier = [new_message(f"m{number}") for number in range(100)]
        await store.save_messages("s", *earlier)
        batcher.is_next = True
        context = await store.save_messages("s", new_message("own"), context=200)
    assert [each["content"] for each in context] == [each.content for each in earlier]


async def test_a_save_that_is_sent_again_is_confirmed_if_the_session_exists(
    workers: list[ClientSession], proxy: CuttingProxy
) -> None:
    await workers[1].delete(f"{BASE}/history/s")
    proxy.cut_key = SESSION_KEY
    _, is_saved = await chat(workers[0])
    assert proxy.cuts == 1
    roles = [message["role"] for message in await history(workers[1])]
    assert (is_saved, roles) == (True, ["user", "assistant"])


async def test_an_answer_that_was_not_stored_with_its_user_message_obeys_a_deletion(
    serve: Serve, groq: MockGroq, own_redis_server: RedisServer
) -> None:
    api = await serve(redis_url=own_redis_server.url(), redis_timeout_s=0.3)
    assert await chat(api, context=0)
    own_redis_server.freeze()

    async def thaw_and_delete() -> None:
        own_redis_server.thaw()
        response = await api.delete(f"{BASE}/history/s")
        assert response.status == 200

    groq.before_response = thaw_and_delete
    _, is_saved = await chat(api)
    assert (is_saved, await history(api)) == (False, [])


async def test_the_library_reports_a_deletion_during_a_save_that_is_sent_again(
    proxy: CuttingProxy, own_redis_server: RedisServer
) -> None:
    async with (
        RedisChatService.from_url(f"redis://127.0.0.1:{proxy.port}/0") as first,
        RedisChatService.from_url(own_redis_server.url()) as second,
    ):

        async def delete() -> None:
            await second.clear_session("s")

        proxy.after_write, proxy.cut_key = delete, SESSION_KEY
        await first.save_message("s", "user", "Hello")
        # The save ends after the deletion, so either order is correct.
        assert [message.content for message in await second.get_session_history("s")] == ["Hello"]
