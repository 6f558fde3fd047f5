"""What a page costs as sessions grow, and what a message weighs."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from redis.asyncio import Redis

from groqchat.services.redis_chat_service import RedisChatService
from groqchat.storage.messages import Message, Role, new_message_id

TTL_S = 86400
MODEL = "openai/gpt-oss-20b"
PAGE = 50
REPEATS = 30
WEIGHED_SESSIONS = 200
WEIGHED_MESSAGES = 50
BATCH = 10_000


def _message(number: int, chars: int) -> Message:
    role: Role = "assistant" if number % 2 else "user"
    tokens = 256 if number % 2 else None
    return Message(id=new_message_id(), role=role, content="x" * chars, model=MODEL, tokens=tokens)


async def memory_per_message(socket: Path, chars: int) -> float:
    """Return the bytes that a message adds to the server, its session's overhead included."""
    async with Redis(unix_socket_path=str(socket), protocol=2) as redis:
        await redis.flushall(asynchronous=False)
        store = RedisChatService(redis, ttl_s=TTL_S, timeout_s=10)
        before = (await redis.info("memory"))["used_memory_dataset"]
        for session in range(WEIGHED_SESSIONS):
            for number in range(WEIGHED_MESSAGES):
                await store.save_message(f"user-{session:06}", _message(number, chars))
        after = (await redis.info("memory"))["used_memory_dataset"]
    return float(after - before) / (WEIGHED_SESSIONS * WEIGHED_MESSAGES)


async def history_page_ms(socket: Path, length: int) -> float:
    """Return the median time of a page in the middle of a session of `length` messages."""
    async with Redis(unix_socket_path=str(socket), protocol=2) as redis:
        await redis.flushall(asynchronous=False)
        store = RedisChatService(redis, ttl_s=TTL_S, timeout_s=30)
        messages = [_message(number, 90) for number in range(length)]
        for start in range(0, length, BATCH):
            await store.save_message("long", *messages[start : start + BATCH])
        middle = messages[length // 2].id
        return await _median_ms(
            lambda: store.get_session_history("long", limit=PAGE, before=middle)
        )


async def sessions_page_ms(socket: Path, count: int) -> float:
    """Return the median time of a page in the middle of a list of `count` sessions."""
    async with Redis(unix_socket_path=str(socket), protocol=2) as redis:
        await redis.flushall(asynchronous=False)
        now = time.time()
        for start in range(0, count, BATCH):
            names = [f"s{number:07}" for number in range(start, min(start + BATCH, count))]
            scores = {name: now + 1000 + int(name[1:]) / 1000 for name in names}
            await redis.zadd("chat:sessions", scores)
            async with redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.zadd(f"chat:session:{name}", {b"x": 1})
                await pipe.execute()
        store = RedisChatService(redis, ttl_s=TTL_S, timeout_s=30)
        middle = f"s{count // 2:07}"
        return await _median_ms(lambda: store.get_all_sessions(limit=PAGE, after=middle))


async def _median_ms(read: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        await read()
        times.append((time.perf_counter() - began) * 1000)
    return median(times)


def run(measured: Awaitable[float]) -> float:
    """Run one measurement to its end."""

    async def wait() -> float:
        return await measured

    return asyncio.run(wait())
