"""One deadline and one error type for whatever is asked of Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from groqchat.errors import HistoryFailed, HistoryUnavailable, StorageError

# A server that answers with one of these may well take the same command later.
PASSING_REPLIES = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "EXECABORT",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
    }
)
RETRY_AFTER_S = 2.0


@asynccontextmanager
async def guarded(timeout_s: float) -> AsyncIterator[None]:
    """Raise StorageError for whatever Redis or the way to it does wrong within the block."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise unavailable(f"no answer within {timeout_s:g} s") from error
    except (RedisError, OSError) as error:
        raise storage_error(error) from error


def storage_error(error: Exception) -> StorageError:
    """Return our error for one of redis-py's, without the arguments of the command."""
    # redis-py puts the command, and so the message, before what went wrong, as a tuple's text.
    reason = str(error).rpartition("caused error: ")[2].lstrip("('\"")
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return unavailable(f"{type(error).__name__}: {reason}")
    reply = reason.split(" ", 1)[0]
    if reply.rstrip(":") in PASSING_REPLIES or type(error).__name__ in {
        "ExecAbortError",
        "OutOfMemoryError",
        "ReadOnlyError",
    }:
        return unavailable(f"{type(error).__name__}: {reply}")
    return HistoryFailed(f"{type(error).__name__}: {reply}")


def unavailable(detail: str) -> HistoryUnavailable:
    """Return the error for a Redis that is away, with the time after which to try again."""
    return HistoryUnavailable(detail, retry_after_s=RETRY_AFTER_S)
