"""Reading many replies off one redis.asyncio connection without a coroutine for each."""

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

READ_BYTES = 64 * 1024
# fakeredis' connection looks alike and has nothing behind it.
REAL_CONNECTIONS = frozenset({Connection, SSLConnection, UnixDomainSocketConnection})


async def read_replies(connection: AbstractConnection, count: int) -> list[Any]:
    """Return the next `count` replies, errors of commands as exceptions among them.

    redis-py has no public way to take what has arrived at once, and a coroutine for each reply
    costs more than all else together: so this looks at the parser and the stream behind the
    connection. tests/test_bulk.py fails where a later version of redis-py has them no more.
    """
    if type(connection) not in REAL_CONNECTIONS:
        return [await _reply(connection) for _ in range(count)]
    parser: Any = connection._parser  # noqa: SLF001 - see above
    reader = parser._reader  # noqa: SLF001 - see above
    stream: Any = connection._reader  # noqa: SLF001 - see above
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
