"""Failures of Redis: which ones a client may retry, what the log contains, lost connections."""

import asyncio
import gc
from typing import Any

import pytest
from redis._parsers import hiredis as redis_hiredis
from redis.asyncio import Redis
from redis.exceptions import (
    BusyLoadingError,
    ExecAbortError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from groqchat.errors import HistoryFailed, HistoryUnavailable, StorageError
from groqchat.storage.errors import TRANSIENT_REPLIES, confirmed, redis_errors, storage_error
from groqchat.storage.redis_internals import (
    choose_execute,
    execute_public,
    execute_raw,
    missing_internals,
)


def seen(error: StorageError) -> tuple[type[StorageError], str, float | None]:
    return type(error), error.detail, error.retry_after_s


def unavailable(detail: str) -> tuple[type[StorageError], str, float | None]:
    return HistoryUnavailable, detail, 2.0


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (RedisConnectionError("Connection refused"), "ConnectionError: Connection refused"),
        (RedisConnectionError(), "ConnectionError"),
        (RedisTimeoutError("Timeout reading"), "TimeoutError: Timeout reading"),
        (TimeoutError(), "TimeoutError"),
        (OSError("Broken pipe"), "OSError: Broken pipe"),
        (BusyLoadingError("Redis is loading"), "BusyLoadingError: Redis is loading"),
    ],
    ids=repr,
)
def test_a_failed_connection_is_unavailable_with_its_reason(error: Exception, detail: str) -> None:
    assert seen(storage_error(error)) == unavailable(detail)


@pytest.mark.parametrize("code", sorted(TRANSIENT_REPLIES))
def test_a_temporary_error_reply_is_unavailable_with_its_code(code: str) -> None:
    assert seen(storage_error(ResponseError(f"{code} because of secret-text"))) == unavailable(
        f"ResponseError: {code}"
    )


def test_a_code_that_ends_with_a_colon_is_recognised() -> None:
    error = ResponseError("LOADING: secret-text")
    assert seen(storage_error(error)) == unavailable("ResponseError: LOADING:")


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ExecAbortError("Transaction discarded"), "ExecAbortError: Transaction"),
        (OutOfMemoryError("command not allowed"), "OutOfMemoryError: command"),
        (ReadOnlyError("You can't write"), "ReadOnlyError: You"),
    ],
    ids=repr,
)
def test_a_temporary_error_class_without_its_code_is_unavailable(
    error: Exception, detail: str
) -> None:
    assert seen(storage_error(error)) == unavailable(detail)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ResponseError("WRONGTYPE secret-text"), "ResponseError: WRONGTYPE"),
        (NoScriptError("No matching script"), "NoScriptError: No"),
        (ResponseError("ERR OOM secret-text"), "ResponseError: ERR"),
        (ResponseError(), "ResponseError: "),
    ],
    ids=repr,
)
def test_any_other_error_reply_is_final(error: Exception, detail: str) -> None:
    assert seen(storage_error(error)) == (HistoryFailed, detail, None)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ResponseError("('WRONGTYPE Operation', 'ZADD')"), "ResponseError: WRONGTYPE"),
        (
            ResponseError("Command # 1 (ZADD k 1 secret) of pipeline caused error: WRONGTYPE it"),
            "ResponseError: WRONGTYPE",
        ),
        (
            ResponseError(
                "Command # 1 (ZADD k 1 caused error: secret) of pipeline caused error: WRONGTYPE it"
            ),
            "ResponseError: WRONGTYPE",
        ),
        (
            ResponseError("('Command # 1 (ZADD k) of pipeline caused error: WRONGTYPE it', 1)"),
            "ResponseError: WRONGTYPE",
        ),
        (
            ResponseError("Command # 1 (ZADD k) of pipeline caused error: (\"'WRONGTYPE' it\")"),
            "ResponseError: WRONGTYPE'",
        ),
    ],
    ids=repr,
)
def test_the_detail_does_not_contain_the_arguments_of_the_command(
    error: Exception, detail: str
) -> None:
    assert seen(storage_error(error)) == (HistoryFailed, detail, None)


async def test_a_block_that_succeeds_raises_nothing() -> None:
    async with redis_errors(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("error", [RedisError("broken"), OSError("broken")], ids=repr)
async def test_an_error_of_redis_becomes_a_storage_error_with_its_cause(error: Exception) -> None:
    with pytest.raises(StorageError) as caught:
        async with redis_errors(5):
            raise error
    assert seen(caught.value) == seen(storage_error(error))
    assert caught.value.__cause__ is error


async def test_a_block_that_exceeds_the_deadline_is_unavailable() -> None:
    with pytest.raises(HistoryUnavailable) as caught:
        async with asyncio.timeout(5), redis_errors(0.001):
            await asyncio.Event().wait()
    assert seen(caught.value) == unavailable("no answer within 0.001 s")


@pytest.mark.parametrize("error", [KeyError("k"), HistoryFailed("final")], ids=repr)
async def test_any_other_error_of_the_block_is_raised_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        async with redis_errors(5):
            raise error
    assert caught.value is error


async def test_a_connection_that_is_not_open_is_opened_first(redis: Redis) -> None:
    connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call] # redis-py has no types here
    await connection.disconnect()
    assert await execute_raw(connection, b"PING\r\n" * 2, 2) == [b"PONG", b"PONG"]
    await redis.connection_pool.release(connection)


async def test_without_a_private_part_of_redis_py_the_public_api_is_used(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(redis_hiredis, "NOT_ENOUGH_DATA")
    assert missing_internals() == ["redis-py: redis._parsers.hiredis.NOT_ENOUGH_DATA"]
    assert choose_execute() is execute_public
    monkeypatch.undo()

    connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call] # redis-py has no types here
    pong, error = await execute_public(connection, b"PING\r\nWRONG\r\n", 2)
    assert pong == b"PONG"
    assert isinstance(error, ResponseError)
    await redis.connection_pool.release(connection)


@pytest.mark.parametrize("fails_first", [False, True])
async def test_the_error_of_a_call_whose_caller_was_cancelled_is_not_reported(
    *, fails_first: bool
) -> None:
    reports: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reports.append(context))
    call: asyncio.Future[list[Any]] = loop.create_future()
    caller = asyncio.create_task(confirmed(call, 5))
    await asyncio.sleep(0)
    if fails_first:
        call.set_exception(HistoryUnavailable("x"))
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    if not fails_first:
        call.set_exception(HistoryUnavailable("x"))
    await asyncio.sleep(0)
    del call
    gc.collect()
    assert reports == []


async def test_a_call_that_is_cancelled_later_is_not_reported() -> None:
    reports: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reports.append(context))
    call: asyncio.Future[list[Any]] = loop.create_future()
    with pytest.raises(HistoryUnavailable, match=r"not confirmed within 0\.01 s"):
        await confirmed(call, 0.01)
    call.cancel()
    await asyncio.sleep(0)
    assert reports == []


async def test_a_connection_that_uvloop_has_closed_is_unavailable() -> None:
    message = "unable to perform operation on <TCPTransport closed=True>; the handler is closed"
    with pytest.raises(HistoryUnavailable):
        async with redis_errors(5):
            raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="another"):
        async with redis_errors(5):
            raise RuntimeError("another error")
