"""The private parts of redis-py that groqchat uses, and their replacement by the public API.

Gain, measured with 64 concurrent writers: one write and bulk parsing store 73,000 to 90,000
messages/s; the public API, which runs a coroutine for each reply and a task for each send, stores
20,000. tests/test_redis_internals.py fails if a new version of redis-py changes these parts.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

try:
    from redis._parsers import hiredis as redis_hiredis
except ImportError:
    redis_hiredis = None  # type: ignore[assignment] # missing_internals() reports it
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

# Sends packed commands over a connection and returns that number of replies.
Execute: TypeAlias = Callable[[AbstractConnection, bytes, int], Awaitable[list[Any]]]

READ_BYTES = 1024 * 1024
# A connection of fakeredis has the same interface but no socket.
SOCKET_CONNECTIONS = frozenset({Connection, SSLConnection, UnixDomainSocketConnection})


def missing_internals() -> list[str]:
    """Return the names of the private parts that the installed redis-py does not have."""
    connection = Connection(protocol=2)
    parser = getattr(connection, "_parser", None)
    expected: list[tuple[object, str]] = [
        (redis_hiredis, "NOT_ENOUGH_DATA"),
        (connection, "_reader"),
        (connection, "_writer"),
        (connection, "_parser"),
        (parser, "_reader"),
    ]
    return [
        f"redis-py: {getattr(owner, '__name__', type(owner).__name__)}.{name}"
        for owner, name in expected
        if not hasattr(owner, name)
    ]


def choose_execute() -> Execute:
    """Return `execute_raw` if the installed redis-py supports it, otherwise `execute_public`."""
    return execute_public if missing_internals() else execute_raw


async def execute_raw(connection: AbstractConnection, request: bytes, count: int) -> list[Any]:
    """Send packed commands and return their `count` replies; error replies are exceptions.

    Reads many replies at once from the stream and the parser inside the connection. The caller
    sets the deadline.
    """
    if type(connection) not in SOCKET_CONNECTIONS:
        return await execute_public(connection, request, count)
    if not connection.is_connected:
        await connection.connect()  # type: ignore[no-untyped-call] # redis-py has no types here
    writer: Any = connection._writer  # noqa: SLF001 - see the docstring of the module
    stream: Any = connection._reader  # noqa: SLF001 - see the docstring of the module
    parser: Any = connection._parser  # noqa: SLF001 - see the docstring of the module
    writer.write(request)
    await writer.drain()
    return await _read_replies(parser._reader, stream, count)  # noqa: SLF001 - as above


async def execute_public(connection: AbstractConnection, request: bytes, count: int) -> list[Any]:
    """Do the same through redis-py's public API, with one coroutine for each reply."""
    await connection.send_packed_command(request, check_health=False)
    return [await _read_reply(connection) for _ in range(count)]


async def _read_replies(reader: Any, stream: Any, count: int) -> list[Any]:
    """Parse `count` replies, as many as possible for each read of the socket."""
    replies: list[Any] = []
    while len(replies) < count:
        reply = reader.gets()
        if reply is not redis_hiredis.NOT_ENOUGH_DATA:
            replies.append(reply)
            continue
        data = await stream.read(READ_BYTES)
        if not data:
            raise RedisConnectionError("the server closed the connection")
        reader.feed(data)
    return replies


async def _read_reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        # A traceback would make the returned error part of a reference cycle.
        return error.with_traceback(None)
