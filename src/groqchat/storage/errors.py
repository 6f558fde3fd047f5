"""Translation of Redis failures: one deadline and one error class for every operation."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from groqchat.errors import HistoryFailed, HistoryUnavailable, StorageError

# Error codes of a server that may accept the same command later.
TRANSIENT_REPLIES = frozenset(
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
# redis-py's classes for some of these codes; their text does not contain the code.
TRANSIENT_CLASSES = frozenset({"ExecAbortError", "OutOfMemoryError", "ReadOnlyError"})
# redis-py's class for a command or key that the Redis user may not use, and how the error of a
# script begins then.
NO_PERMISSION = "NoPermissionError"
NO_PERMISSION_IN_SCRIPT = "ACL"
RETRY_AFTER_S = 2.0


@asynccontextmanager
async def redis_errors(timeout_s: float) -> AsyncIterator[None]:
    """Raise StorageError if Redis or its connection fails in the block, or after the deadline."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (RedisError, OSError) as error:
        raise storage_error(error, timeout_s=timeout_s) from error
    except RuntimeError as error:
        # The error of uvloop for a connection that was closed a moment ago.
        if "closed" not in str(error):
            raise
        raise unavailable("the connection is closed") from error


async def confirmed(call: asyncio.Future[list[Any]], max_wait_s: float) -> list[Any]:
    """Return the replies to a transaction; raise HistoryUnavailable after `max_wait_s`.

    The transaction is not cancelled then: it may still succeed.
    """
    try:
        await asyncio.wait([call], timeout=max(max_wait_s, 0))
    except asyncio.CancelledError:
        call.add_done_callback(_retrieve_error)
        raise
    try:
        if not call.done():
            call.add_done_callback(_retrieve_error)
            raise unavailable(f"not confirmed within {max_wait_s:.3g} s")
        return call.result()
    finally:
        # The traceback of an error refers to this frame, and the future to the error.
        del call


def _retrieve_error(call: asyncio.Future[list[Any]]) -> None:
    """Prevent asyncio from reporting the error of a call for which nobody waits any more."""
    if not call.cancelled():
        call.exception()


def storage_error(error: Exception, *, timeout_s: float | None = None) -> StorageError:
    """Return the StorageError for an error of redis-py, without the arguments of the command.

    `timeout_s` is the deadline whose end raised a TimeoutError.
    """
    if isinstance(error, TimeoutError) and timeout_s is not None:
        return unavailable(f"no answer within {timeout_s:g} s")
    # redis-py puts the command, and so the message text, in front of the reason, as a tuple's repr.
    reason = str(error).rpartition("caused error: ")[2].lstrip("('\"")
    kind = type(error).__name__
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return unavailable(f"{kind}: {reason}" if reason else kind)
    code = reason.split(" ", 1)[0]
    if code.rstrip(":") in TRANSIENT_REPLIES or kind in TRANSIENT_CLASSES:
        return unavailable(f"{kind}: {code}")
    if kind == NO_PERMISSION or code == NO_PERMISSION_IN_SCRIPT:
        # The text names the command, and no key or value.
        return HistoryFailed(f"{NO_PERMISSION}: {reason}")
    return HistoryFailed(f"{kind}: {code}")


def unavailable(detail: str) -> HistoryUnavailable:
    """Return the error for an unavailable Redis, with the delay before a retry."""
    return HistoryUnavailable(detail, retry_after_s=RETRY_AFTER_S)
