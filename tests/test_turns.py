"""A turn's own life: clients that leave, bursts, shutdown, its two round trips."""

import asyncio
import json
from functools import partial
from typing import Any

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
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.services.turns.chat import ChatService
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.services.turns.registry import TurnRegistry
from groqchat.settings import Settings
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq


async def contents(api: ClientSession, session_id: str = "s") -> list[str]:
    response = await api.get(f"{BASE}/history/{session_id}")
    return [message["content"] for message in (await response.json())["messages"]]


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_turn_is_two_round_trips(api: ClientSession, redis: Redis) -> None:
    body = {"message": "Hello", "session_id": "s"}
    await api.post(f"{BASE}/chat", json=body)

    async def reads() -> int:
        stats: dict[str, int] = await redis.info("stats")
        return stats["total_reads_processed"]

    before = await reads()
    await api.post(f"{BASE}/chat", json=body)
    # One read more is that of the question how many reads there were.
    assert await reads() - before == 2 + 1


async def test_both_writes_of_a_turn_carry_the_time_to_live(
    api: ClientSession, redis: Redis
) -> None:
    body = {"message": "Hello", "session_id": "s"}
    await api.post(f"{BASE}/chat", json=body)
    async with redis.monitor() as monitor:
        await api.post(f"{BASE}/chat", json=body)
        # Said over a connection of the test's own, which is not what is looked at.
        await redis.echo("end")
        seen: list[str] = []
        while "ECHO" not in seen:
            seen.append((await monitor.next_command())["command"].split(" ")[0])
    turn = [command for command in seen if command not in {"CLIENT", "SELECT", "ECHO"}]
    writes = ["ZADD", "EXPIRE", "ZADD", "EXEC"]
    # The answer is written with a look at whether its question still stands.
    assert turn == ["MULTI", "ZRANGE", *writes, "MULTI", "ZCOUNT", *writes]


async def test_a_client_that_leaves_does_not_end_its_turn(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.latency_ms = 500
    body = {"message": "Hello", "session_id": "s"}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await api.post(f"{BASE}/chat", json=body)

    async def answered() -> bool:
        return len(await contents(api)) == 2

    await until(answered)


async def test_a_session_deleted_in_mid_turn_stays_deleted(
    api: ClientSession, groq: MockGroq, redis: Redis
) -> None:
    async def delete() -> None:
        assert (await api.delete(f"{BASE}/history/s")).status == 200

    groq.before_response = delete
    response = await api.post(f"{BASE}/chat", json={"message": "Hello", "session_id": "s"})

    assert (await response.json())["history_saved"] is False
    assert await redis.keys("*") == []


async def test_turns_beyond_the_limit_are_refused_and_told_when_to_return(
    serve: Serve, groq: MockGroq
) -> None:
    groq.options.latency_ms = 500
    api = await serve(max_concurrent_turns=3)

    async def ask() -> int:
        response = await api.post(f"{BASE}/chat", json={"message": "Hello"})
        if response.status != 200:
            await assert_error(response, 503, "overloaded")
        return response.status

    statuses = await asyncio.gather(*(ask() for _ in range(8)))
    assert sorted(statuses) == [200] * 3 + [503] * 5
    assert await ask() == 200


async def test_many_turns_of_many_sessions_keep_apart(api: ClientSession) -> None:
    async def talk(session_id: str) -> None:
        for number in range(3):
            body = {"message": f"{session_id}-{number}", "session_id": session_id}
            response = await api.post(f"{BASE}/chat", json=body)
            assert response.status == 200

    names = [f"session-{number}" for number in range(40)]
    await asyncio.gather(*(talk(name) for name in names))

    for name in names:
        assert (await contents(api, name))[::2] == [f"{name}-{number}" for number in range(3)]


class OwnService:
    """A chat service of its own, to be shut down in mid-turn."""

    def __init__(self, redis: Redis, latency_ms: float, grace_s: float) -> None:
        self.redis = redis
        self.options = MockGroqOptions(latency_ms=latency_ms)
        self.settings = Settings(
            groq_base_url="offline:", shutdown_grace_s=grace_s, max_concurrent_turns=2
        )

    async def __aenter__(self) -> ChatService:
        self.offline = serve_mock_groq(self.options)
        base_url = await self.offline.__aenter__()
        self.opened = open_groq_client(self.settings, base_url)
        groq = await self.opened.__aenter__()
        batcher = CommandBatcher(self.redis, timeout_s=5)
        self.history = RedisChatService(self.redis, batcher, ttl_s=100, timeout_s=5)
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
        stop = partial(self.turns.stop_all, "shutdown")
        await self.limiter.drain(self.settings.shutdown_grace_s, stop)

    async def __aexit__(self, *_: object) -> None:
        await self.opened.__aexit__(None, None, None)
        await self.offline.__aexit__(None, None, None)


async def test_draining_lets_turns_end_and_takes_no_more(redis: Redis) -> None:
    turns = OwnService(redis, latency_ms=300, grace_s=20)
    async with turns as chat:
        turn = asyncio.create_task(chat.answer(ChatRequest(message="Hello", session_id="s")))
        await asyncio.sleep(0)
        draining = asyncio.create_task(turns.drain())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await chat.answer(ChatRequest(message="Too late"))
        await draining

        assert (await turn).history_saved is True
        assert await turns.history.get_session_size("s") == 2


async def test_a_turn_that_outlasts_the_grace_time_is_ended_its_question_kept(
    redis: Redis,
) -> None:
    turns = OwnService(redis, latency_ms=60_000, grace_s=0.2)
    async with turns as chat:
        turn = asyncio.create_task(chat.answer(ChatRequest(message="Hello", session_id="s")))

        async def saved() -> bool:
            return await turns.history.get_session_size("s") == 1

        await until(saved)
        await turns.drain()
        with pytest.raises(ShuttingDown):
            await turn
        assert await turns.history.get_session_size("s") == 1


async def test_a_stream_that_outlasts_the_grace_time_ends_with_an_error(redis: Redis) -> None:
    service = OwnService(redis, latency_ms=60_000, grace_s=0.4)
    async with service as chat:
        turn = chat.start(ChatRequest(message="Hello", session_id="s", stream=True))
        await service.drain()
        name, data = sse.parse_event(await turn.final_event())
        assert (name, json.loads(data)["error"]["code"]) == ("error", "shutting_down")
        assert turn.is_over
        assert await service.history.get_session_size("s") == 1


async def test_a_refused_turn_leaves_no_trace(redis: Redis) -> None:
    turns = OwnService(redis, latency_ms=300, grace_s=20)
    async with turns as chat:
        busy = [
            asyncio.create_task(chat.answer(ChatRequest(message="Hello", session_id="busy")))
            for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await chat.answer(ChatRequest(message="Hello", session_id="refused"))
        await asyncio.gather(*busy)
        assert await turns.history.get_session_size("refused") == 0
