"""Many commands over one redis.asyncio connection, without a coroutine for each reply."""

from typing import Any

from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

READ_BYTES = 1024 * 1024
# fakeredis' connection looks alike and has nothing behind it.
REAL_CONNECTIONS = frozenset({Connection, SSLConnection, UnixDomainSocketConnection})


async def exchange(connection: AbstractConnection, request: bytes, count: int) -> list[Any]:
    """Send packed commands and return their `count` replies, errors as exceptions among them.

    redis-py has no public way to take what has arrived at once, and a coroutine for each reply
    costs more than all else together; its way to send makes a task of its own each time. So this
    looks at the streams and the parser behind the connection. tests/test_bulk.py fails where a
    later version of redis-py has them no more. The caller's deadline bounds it.
    """
    if type(connection) not in REAL_CONNECTIONS:
        await connection.send_packed_command(request, check_health=False)
        return [await _reply(connection) for _ in range(count)]
    if not connection.is_connected:
        await connection.connect()  # type: ignore[no-untyped-call] # redis-py's gap
    writer: Any = connection._writer  # noqa: SLF001 - see above
    stream: Any = connection._reader  # noqa: SLF001 - see above
    parser: Any = connection._parser  # noqa: SLF001 - see above
    writer.write(request)
    await writer.drain()
    return await _read(parser._reader, stream, count)  # noqa: SLF001 - see above


async def _read(reader: Any, stream: Any, count: int) -> list[Any]:
    """Parse `count` replies off a stream, many at a time."""
    replies: list[Any] = []
    while len(replies) < count:
        reply = reader.gets()
        if reply is not NOT_ENOUGH_DATA:
            replies.append(reply)
            continue
        data = await stream.read(READ_BYTES)
        if not data:
            raise RedisConnectionError("the server closed the connection")
        reader.feed(data)
    return replies


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
