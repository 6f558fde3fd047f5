"""Turns: round trips to Redis, disconnected clients, the limit, shutdown."""

import asyncio
import json

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat import sse
from groqchat.errors import Overloaded, ShuttingDown
from groqchat.http.errors import error_event_data
from groqchat.models import ChatRequest
from groqchat.offline.options import MockGroqOptions
from groqchat.offline.server import serve_mock_groq
from groqchat.services.groq.client import open_groq_client
from groqchat.services.history_store import HistoryStore
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.settings import Settings
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq
from tests.support.streams import wait_until


async def contents(api: ClientSession, session_id: str = "s") -> list[str]:
    response = await api.get(f"{BASE}/history/{session_id}")
    return [message["content"] for message in (await response.json())["messages"]]


async def test_a_turn_needs_two_round_trips_to_redis(api: ClientSession, redis: Redis) -> None:
    body = {"message": "Hello", "session_id": "s"}
    await api.post(f"{BASE}/chat", json=body)

    async def reads() -> int:
        stats: dict[str, int] = await redis.info("stats")
        return stats["total_reads_processed"]

    before = await reads()
    await api.post(f"{BASE}/chat", json=body)
    # The server also counts the second INFO command.
    assert await reads() - before == 2 + 1


async def test_both_writes_of_a_turn_set_the_ttl(api: ClientSession, redis: Redis) -> None:
    body = {"message": "Hello", "session_id": "s"}
    await api.post(f"{BASE}/chat", json=body)
    async with redis.monitor() as monitor:
        await api.post(f"{BASE}/chat", json=body)
        # Marks the end of the turn. The test's own connection sends it, not the service.
        await redis.echo("end")
        names: list[str] = []
        while "ECHO" not in names:
            names.append((await monitor.next_command())["command"].split(" ")[0])
    # The index pruner sends ZREMRANGEBYSCORE.
    others = {"CLIENT", "SELECT", "ECHO", "ZREMRANGEBYSCORE"}
    turn = [name for name in names if name not in others]
    writes = ["ZADD", "EXPIRE", "ZADD", "EXEC"]
    # ZCOUNT checks that the user message still exists when the answer is written.
    assert turn == ["MULTI", "ZRANGE", *writes, "MULTI", "ZCOUNT", *writes]


async def test_a_disconnected_client_does_not_end_its_turn(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.latency_ms = 500
    body = {"message": "Hello", "session_id": "s"}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await api.post(f"{BASE}/chat", json=body)

    async def is_answered() -> bool:
        return len(await contents(api)) == 2

    await wait_until(is_answered)


async def test_a_session_that_is_deleted_during_a_turn_stays_deleted(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    async def delete() -> None:
        assert (await api.delete(f"{BASE}/history/s")).status == 200

    groq.before_response = delete
    response = await api.post(f"{BASE}/chat", json={"message": "Hello", "session_id": "s"})

    assert (await response.json())["history_saved"] is False
    # Only the request to other workers, which expires within a minute.
    assert sorted(await redis.keys("*")) == [b"chat:stops", b"{chat:session:s}:deleted"]


async def test_turns_over_the_limit_are_rejected_with_retry_after(
    serve: Serve, groq: MockGroq
) -> None:
    groq.options.latency_ms = 500
    api = await serve(max_concurrent_turns=3)

    async def chat() -> int:
        response = await api.post(f"{BASE}/chat", json={"message": "Hello"})
        if response.status != 200:
            await assert_error(response, 503, "overloaded")
        return response.status

    statuses = await asyncio.gather(*(chat() for _ in range(8)))
    assert sorted(statuses) == [200] * 3 + [503] * 5
    assert await chat() == 200


async def test_concurrent_turns_of_different_sessions_do_not_mix(api: ClientSession) -> None:
    async def chat_three_times(session_id: str) -> None:
        for number in range(3):
            body = {"message": f"{session_id}-{number}", "session_id": session_id}
            response = await api.post(f"{BASE}/chat", json=body)
            assert response.status == 200

    names = [f"session-{number}" for number in range(40)]
    await asyncio.gather(*(chat_three_times(name) for name in names))

    for name in names:
        assert (await contents(api, name))[::2] == [f"{name}-{number}" for number in range(3)]


class OwnChatService:
    """A chat service with its own limiter and mock Groq server, which a test can drain."""

    def __init__(self, redis: Redis, latency_ms: float, grace_s: float) -> None:
        self.redis = redis
        self.options = MockGroqOptions(latency_ms=latency_ms)
        self.settings = Settings(
            groq_base_url="offline:", shutdown_grace_s=grace_s, max_concurrent_turns=2
        )

    async def __aenter__(self) -> ChatService:
        self.mock_groq = serve_mock_groq(self.options)
        base_url = await self.mock_groq.__aenter__()
        self.groq_client = open_groq_client(self.settings, base_url)
        groq = await self.groq_client.__aenter__()
        batcher = CommandBatcher(self.redis, timeout_s=5)
        self.history = HistoryStore(self.redis, batcher, ttl_s=100, timeout_s=5)
        self.limiter = TurnLimiter(self.settings.max_concurrent_turns)
        self.turns = TurnRegistry(EventLog(batcher), error_event_data)
        return ChatService(
            history=self.history,
            groq=groq,
            turns=self.turns,
            limiter=self.limiter,
            settings=self.settings,
        )

    async def drain(self) -> None:
        """Drain the limiter as the application does at shutdown."""
        await self.limiter.drain(self.settings.shutdown_grace_s, self.turns.shut_down)

    async def __aexit__(self, *_: object) -> None:
        await self.groq_client.__aexit__(None, None, None)
        await self.mock_groq.__aexit__(None, None, None)


async def test_a_drain_waits_for_running_turns_and_rejects_new_turns(redis: Redis) -> None:
    service = OwnChatService(redis, latency_ms=300, grace_s=20)
    async with service as chat:
        turn = asyncio.create_task(chat.answer(ChatRequest(message="Hello", session_id="s")))
        await asyncio.sleep(0)
        draining = asyncio.create_task(service.drain())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await chat.answer(ChatRequest(message="Hello again"))
        await draining

        assert (await turn).history_saved is True
        assert await service.history.get_session_size("s") == 2


async def test_a_turn_is_cancelled_after_the_grace_period_and_its_user_message_stays_stored(
    redis: Redis,
) -> None:
    service = OwnChatService(redis, latency_ms=60_000, grace_s=0.2)
    async with service as chat:
        turn = asyncio.create_task(chat.answer(ChatRequest(message="Hello", session_id="s")))

        async def saved() -> bool:
            return await service.history.get_session_size("s") == 1

        await wait_until(saved)
        await service.drain()
        with pytest.raises(ShuttingDown):
            await turn
        assert await service.history.get_session_size("s") == 1


async def test_a_stream_ends_with_an_error_event_after_the_grace_period(redis: Redis) -> None:
    service = OwnChatService(redis, latency_ms=60_000, grace_s=0.4)
    async with service as chat:
        turn = chat.start(ChatRequest(message="Hello", session_id="s", stream=True))
        await service.drain()
        name, data = sse.parse_event(await turn.final_event())
        assert (name, json.loads(data)["error"]["code"]) == ("error", "shutting_down")
        assert turn.is_over
        assert await service.history.get_session_size("s") == 1


async def test_a_rejected_turn_stores_nothing(redis: Redis) -> None:
    service = OwnChatService(redis, latency_ms=300, grace_s=20)
    async with service as chat:
        busy = [
            asyncio.create_task(chat.answer(ChatRequest(message="Hello", session_id="busy")))
            for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await chat.answer(ChatRequest(message="Hello", session_id="rejected"))
        await asyncio.gather(*busy)
        assert await service.history.get_session_size("rejected") == 0
