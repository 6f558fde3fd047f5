"""Saved messages per second of one process: the history store and three comparisons."""

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import orjson
import redis
from redis.asyncio import BlockingConnectionPool, Redis

from benchmarks import harness
from benchmarks.peers.floor import RawRedis
from groqchat.runtime.gc_tuning import apply_thresholds
from groqchat.services.history_store import HistoryStore
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message, encode_member

# The ways to save a message.
STORE = "store"
POOL = "pool"
RAW = "raw connection"
REDIS_BENCHMARK = "redis-benchmark"

WRITERS = 64
# The same for every number of messages, because a longer session makes ZADD slower.
MESSAGES_PER_SESSION = 150
CONTENT = "x" * 90
TTL_S = 86400
# redis-benchmark replaces this text by twelve digits: a random number below its option -r.
RANDOM_PLACEHOLDER = "__rand_int__"

Save = Callable[[str, Message], Awaitable[object]]


async def save_with_store(client: Redis, count: int) -> float:
    """Save with HistoryStore."""
    async with CommandBatcher(client, timeout_s=10) as batcher:
        store = HistoryStore(client, batcher, ttl_s=TTL_S, timeout_s=10)
        return await _messages_per_second(store.save_messages, count)


async def save_with_pool(client: Redis, count: int) -> float:
    """Save each message with a redis.asyncio pipeline on a connection from the pool."""

    async def save(session_id: str, message: Message) -> None:
        key = f"chat:session:{session_id}"
        fields = {"id": message.id, "role": message.role, "content": message.content}
        async with client.pipeline(transaction=False) as pipe:
            pipe.zadd(key, {orjson.dumps(fields): message.score})
            pipe.expire(key, TTL_S)
            await pipe.execute()

    return await _messages_per_second(save, count)


async def save_with_raw_connection(socket: str, count: int) -> float:
    """Save with the floor's Redis connection: no session index, no timeouts, no error handling."""
    loop = asyncio.get_running_loop()
    transport, raw = await loop.create_unix_connection(RawRedis, socket)

    async def save(session_id: str, message: Message) -> None:
        key = f"chat:session:{session_id}"
        fields = {"id": message.id, "role": message.role, "content": message.content}
        zadd = ("ZADD", key, repr(message.score), orjson.dumps(fields))
        await raw.execute(zadd, ("EXPIRE", key, TTL_S))

    per_second = await _messages_per_second(save, count)
    transport.close()
    return per_second


async def _messages_per_second(save: Save, count: int) -> float:
    sessions = max(1, count // MESSAGES_PER_SESSION)
    messages: Iterator[tuple[str, Message]] = iter(
        [
            (
                f"store-{number % sessions}",
                Message(id=new_message_id(), role="user", content=CONTENT, model="m"),
            )
            for number in range(count)
        ]
    )

    async def write() -> None:
        for session_id, message in messages:
            await save(session_id, message)

    # In every measurement: without it, the garbage collector traverses `messages` repeatedly.
    apply_thresholds()
    begin = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(WRITERS)))
    return count / (time.perf_counter() - begin)


async def measure(way: str, socket: Path, count: int) -> float:
    """Measure one way to save on an empty database and return the messages per second."""
    pool = BlockingConnectionPool.from_url(
        f"unix://{socket}", max_connections=WRITERS, timeout=30, protocol=2
    )
    async with Redis.from_pool(pool) as client:
        await client.flushall()
        if way == RAW:
            return await save_with_raw_connection(str(socket), count)
        return await (save_with_store if way == STORE else save_with_pool)(client, count)


def redis_benchmark(socket: Path, count: int) -> float | None:
    """Return the messages per second that redis-benchmark adds, or None if it is not installed.

    The messages have the length of ours, in as many sessions, and all differ: ZADD of an existing
    member is a third of the work. redis-benchmark sends only ZADD; the store sends three commands
    for each message.
    """
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        return None
    with redis.Redis(unix_socket_path=str(socket)) as client:
        client.flushall()
    placeholders = RANDOM_PLACEHOLDER * (len(CONTENT) // len(RANDOM_PLACEHOLDER))
    content = placeholders.ljust(len(CONTENT), "x")
    message = Message(id=new_message_id(), role="user", content=content, model="m")
    sessions = str(count // MESSAGES_PER_SESSION)
    options = ("-s", str(socket), "-P", "16", "-n", str(count), "-r", sessions, "--csv")
    key, score = f"store-{RANDOM_PLACEHOLDER}", f"1763{RANDOM_PLACEHOLDER}e-6"
    command = ("ZADD", key, score, encode_member(message))
    output = harness.run_on_core([program, *options, *command], harness.SERVICE_CORE)
    # The columns are the command, which may contain commas, requests per second and six latencies.
    return float(output.decode().rsplit(",", 7)[1].strip('"'))


def main() -> None:
    """Measure `WAY SOCKET COUNT` and print the messages per second."""
    import uvloop  # noqa: PLC0415 - the service runs on uvloop too

    way, socket, count = sys.argv[1:]
    print(json.dumps(uvloop.run(measure(way, Path(socket), int(count)))))


if __name__ == "__main__":
    main()
