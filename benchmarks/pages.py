"""The time to read a page of a growing history or session list, and the memory of a message."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from redis.asyncio import Redis

from groqchat.services.history_store import HistoryStore
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message, Role

TTL_S = 86400
MODEL = "openai/gpt-oss-20b"
PAGE = 50
REPEATS = 30
MEMORY_SESSIONS = 200
MEMORY_MESSAGES_PER_SESSION = 50
WRITE_BATCH = 10_000


@asynccontextmanager
async def _empty_store(
    socket: Path, *, timeout_s: float
) -> AsyncIterator[tuple[Redis, HistoryStore]]:
    async with (
        Redis(unix_socket_path=str(socket), protocol=2) as client,
        CommandBatcher(client, timeout_s=timeout_s) as batcher,
    ):
        await client.flushall(asynchronous=False)
        yield client, HistoryStore(client, batcher, ttl_s=TTL_S, timeout_s=timeout_s)


def _message(number: int, chars: int) -> Message:
    role: Role = "assistant" if number % 2 else "user"
    tokens = 256 if number % 2 else None
    return Message(id=new_message_id(), role=role, content="x" * chars, model=MODEL, tokens=tokens)


async def bytes_per_message(socket: Path, chars: int) -> float:
    """Return the memory that a message adds to Redis, its share of the session included."""
    async with _empty_store(socket, timeout_s=10) as (client, store):
        before = (await client.info("memory"))["used_memory_dataset"]
        for session in range(MEMORY_SESSIONS):
            for number in range(MEMORY_MESSAGES_PER_SESSION):
                await store.save_messages(f"user-{session:06}", _message(number, chars))
        after = (await client.info("memory"))["used_memory_dataset"]
    return float(after - before) / (MEMORY_SESSIONS * MEMORY_MESSAGES_PER_SESSION)


async def history_page_ms(socket: Path, length: int) -> float:
    """Return the median time of a page from the middle of a session of `length` messages."""
    async with _empty_store(socket, timeout_s=30) as (_, store):
        messages = [_message(number, 90) for number in range(length)]
        for start in range(0, length, WRITE_BATCH):
            await store.save_messages("long", *messages[start : start + WRITE_BATCH])
        middle = messages[length // 2].id
        return await _median_ms(lambda: store.get_history_page("long", limit=PAGE, before=middle))


async def sessions_page_ms(socket: Path, count: int) -> float:
    """Return the median time of a page from the middle of a list of `count` sessions."""
    async with _empty_store(socket, timeout_s=30) as (client, store):
        now = time.time()
        for start in range(0, count, WRITE_BATCH):
            session_ids = [
                f"s{number:07}" for number in range(start, min(start + WRITE_BATCH, count))
            ]
            expiries = {
                session_id: now + 1000 + int(session_id[1:]) / 1000 for session_id in session_ids
            }
            await client.zadd("chat:sessions", expiries)
            async with client.pipeline(transaction=False) as pipe:
                for session_id in session_ids:
                    pipe.zadd(f"chat:session:{session_id}", {b"x": 1})
                await pipe.execute()
        middle = f"s{count // 2:07}"
        return await _median_ms(lambda: store.get_sessions_page(limit=PAGE, after=middle))


async def _median_ms(read: Callable[[], Awaitable[object]]) -> float:
    times_ms: list[float] = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        await read()
        times_ms.append((time.perf_counter() - begin) * 1000)
    return median(times_ms)


def run(measurement: Coroutine[None, None, float]) -> float:
    """Run a measurement in a new event loop and return its result."""
    return asyncio.run(measurement)
