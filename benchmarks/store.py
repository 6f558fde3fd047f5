"""Messages saved a second by one process: the store, the usual pool, the bare protocol."""

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

from benchmarks import stage
from benchmarks.peers.floor import RawRedis
from groqchat.garbage import relax
from groqchat.services.redis_chat_service import RedisChatService
from groqchat.storage.messages import Message, encode_member, new_message_id

WRITERS = 64
# Whatever the number of messages, so many to a session.
PER_SESSION = 150
CONTENT = "x" * 90
TTL_S = 86400
# What redis-benchmark puts twelve random digits in place of, below the number given by -r.
RANDOM = "__rand_int__"

Save = Callable[[str, Message], Awaitable[object]]


async def by_store(client: Redis, count: int) -> float:
    """Save through RedisChatService."""
    store = RedisChatService(client, ttl_s=TTL_S, timeout_s=10)
    return await _timed(store.save_message, count)


async def by_pool(client: Redis, count: int) -> float:
    """Save with a redis.asyncio pipeline a message, each from the pool."""

    async def save(session_id: str, message: Message) -> None:
        key = f"chat:session:{session_id}"
        fields = {"id": message.id, "role": message.role, "content": message.content}
        async with client.pipeline(transaction=False) as pipe:
            pipe.zadd(key, {orjson.dumps(fields): message.score})
            pipe.expire(key, TTL_S)
            await pipe.execute()

    return await _timed(save, count)


async def at_floor(socket: str, count: int) -> float:
    """Save over one bare multiplexed connection, without any of a store's care."""
    loop = asyncio.get_running_loop()
    transport, raw = await loop.create_unix_connection(RawRedis, socket)

    async def save(session_id: str, message: Message) -> None:
        key = f"chat:session:{session_id}"
        fields = {"id": message.id, "role": message.role, "content": message.content}
        zadd = ("ZADD", key, repr(message.score), orjson.dumps(fields))
        await raw.run(zadd, ("EXPIRE", key, TTL_S))

    figure = await _timed(save, count)
    transport.close()
    return figure


async def _timed(save: Save, count: int) -> float:
    sessions = max(1, count // PER_SESSION)
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

    # For all of them alike: otherwise the messages above are walked through again and again.
    relax()
    began = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(WRITERS)))
    return count / (time.perf_counter() - began)


async def measure(kind: str, socket: Path, count: int) -> float:
    """Measure one way once, over an empty database, and return messages a second."""
    pool = BlockingConnectionPool.from_url(
        f"unix://{socket}", max_connections=WRITERS, timeout=30, protocol=2
    )
    async with Redis.from_pool(pool) as client:
        await client.flushall()
        if kind == "floor":
            return await at_floor(str(socket), count)
        return await (by_store if kind == "store" else by_pool)(client, count)


def redis_benchmark(socket: Path, count: int) -> float | None:
    """Return how many messages a second the server's own benchmark adds; None without it.

    As long as ours, to as many sessions, and no two alike: to add what is there already is a
    third of the work. ZADD alone, where the store sends three commands for each.
    """
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        return None
    with redis.Redis(unix_socket_path=str(socket)) as client:
        client.flushall()
    content = (RANDOM * (len(CONTENT) // len(RANDOM))).ljust(len(CONTENT), "x")
    message = Message(id=new_message_id(), role="user", content=content, model="m")
    sessions = str(count // PER_SESSION)
    options = ("-s", str(socket), "-P", "16", "-n", str(count), "-r", sessions, "--csv")
    command = ("ZADD", f"store-{RANDOM}", f"1763{RANDOM}e-6", encode_member(message))
    printed = stage.run_on_core([program, *options, *command], stage.SERVICE_CORE)
    # Requests a second, and six columns of latencies behind it; the first holds the command.
    return float(printed.decode().rsplit(",", 7)[1].strip('"'))


def main() -> None:
    """Run `KIND SOCKET COUNT` and print the figure."""
    import uvloop  # noqa: PLC0415 - the service runs on it as well

    kind, socket, count = sys.argv[1:]
    print(json.dumps(uvloop.run(measure(kind, Path(socket), int(count)))))


if __name__ == "__main__":
    main()
