"""The command batcher when connections break: retries, deadlines, and the limits of its queue."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from groqchat.errors import HistoryFailed, HistoryUnavailable, StorageError
from groqchat.storage import command_batcher
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.redis_internals import Execute, execute_public

TIMEOUT_S = 5
# MULTI and EXEC, which the batcher adds to each group.
FRAME = 2


class Server:
    """Executes each request with the next of its behaviours, then normally."""

    def __init__(self, redis: FakeAsyncRedis, monkeypatch: pytest.MonkeyPatch) -> None:
        self.redis = redis
        self.behaviours: list[Exception | Execute] = []
        # The numbers of commands of all requests, without MULTI and EXEC of one group.
        self.requests: list[int] = []
        self.connections: list[AbstractConnection] = []
        self.delays: list[float] = []
        self._sleep = asyncio.sleep
        monkeypatch.setattr(command_batcher, "choose_execute", lambda: self.execute)
        monkeypatch.setattr(asyncio, "sleep", self._record_delay)

    async def execute(
        self, connection: AbstractConnection, request: bytes, count: int
    ) -> list[Any]:
        self.requests.append(count - FRAME)
        self.connections.append(connection)
        behaviour = self.behaviours.pop(0) if self.behaviours else execute_public
        if isinstance(behaviour, Exception):
            raise behaviour
        return await behaviour(connection, request, count)

    async def _record_delay(self, delay_s: float) -> None:
        self.delays.append(delay_s)
        await self._sleep(0)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server without data."""
    return Server(FakeAsyncRedis(), monkeypatch)


def new_batcher(server: Server, *, timeout_s: float = TIMEOUT_S) -> CommandBatcher:
    return CommandBatcher(server.redis, timeout_s=timeout_s)


def replies_with(replies: list[Any]) -> Execute:
    """Return a behaviour that executes nothing and returns these replies."""

    async def execute(_connection: AbstractConnection, _request: bytes, _count: int) -> list[Any]:
        return replies

    return execute


def blocked(until: asyncio.Event) -> Execute:
    """Return a behaviour that executes the request after an event."""

    async def execute(connection: AbstractConnection, request: bytes, count: int) -> list[Any]:
        await until.wait()
        return await execute_public(connection, request, count)

    return execute


def seen(error: object) -> tuple[type[object], str]:
    assert isinstance(error, StorageError)
    return type(error), error.detail


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)


async def test_a_batch_is_sent_again_after_connection_errors(server: Server) -> None:
    batcher = new_batcher(server)
    server.behaviours = [RedisConnectionError("1"), OSError("2"), RedisConnectionError("3")]
    assert await batcher.transact([("ECHO", "x")]) == [b"x"]
    assert server.requests == [1, 1, 1, 1]
    # At once, then after growing delays.
    assert server.delays == [0.0, 0.1, 0.2]


async def test_a_batch_fails_after_its_last_attempt(server: Server) -> None:
    batcher = new_batcher(server)
    server.behaviours = [RedisConnectionError(f"reason {number}") for number in range(1, 7)]
    with pytest.raises(HistoryUnavailable) as failed:
        await batcher.transact([("ECHO", "x")])
    assert seen(failed.value) == (HistoryUnavailable, "ConnectionError: reason 5")
    assert len(server.requests) == 5
    assert server.delays == [0.0, 0.1, 0.2, 0.4]


async def test_after_a_failed_batch_the_next_is_sent_once_until_redis_answers(
    server: Server,
) -> None:
    batcher = new_batcher(server)
    server.behaviours = [RedisConnectionError("down") for _ in range(6)]
    for expected in (5, 6):
        with pytest.raises(HistoryUnavailable):
            await batcher.transact([("ECHO", "x")])
        assert len(server.requests) == expected

    assert await batcher.transact([("ECHO", "x")]) == [b"x"]
    server.behaviours = [RedisConnectionError("again")]
    assert await batcher.transact([("ECHO", "x")]) == [b"x"]
    assert len(server.requests) == 9


async def test_an_error_of_every_caller_of_a_failed_batch_is_its_own(server: Server) -> None:
    batcher = new_batcher(server)
    server.behaviours = [RedisConnectionError("down") for _ in range(5)]
    results = await asyncio.gather(
        *(batcher.transact([("ECHO", number)]) for number in range(3)), return_exceptions=True
    )
    assert [seen(result) for result in results] == [
        (HistoryUnavailable, "ConnectionError: down")
    ] * 3
    assert len({id(result) for result in results}) == 3


async def test_a_batch_without_an_answer_fails_at_its_deadline(server: Server) -> None:
    batcher = new_batcher(server, timeout_s=0.01)
    server.behaviours = [blocked(asyncio.Event())]
    with pytest.raises(HistoryUnavailable) as failed:
        await batcher.transact([("ECHO", "x")])
    assert failed.value.detail == "no answer within 0.01 s"
    assert failed.value.retry_after_s == 2.0


async def test_an_unexpected_error_is_logged_and_fails_its_batch_only(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    batcher = new_batcher(server)
    error = KeyError("secret-text")
    server.behaviours = [error]
    with pytest.raises(HistoryFailed) as failed:
        await batcher.transact([("ECHO", "x")])
    assert seen(failed.value) == (HistoryFailed, "KeyError")
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "sending a batch of commands failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert await batcher.transact([("ECHO", "y")]) == [b"y"]


async def test_a_connection_is_reused_until_it_fails(server: Server) -> None:
    batcher = new_batcher(server)
    for _ in range(2):
        await batcher.transact([("ECHO", "x")])
    first = server.connections[0]
    assert server.connections == [first, first]
    closed: list[bool] = []
    disconnect = first.disconnect

    async def record_disconnect(*, nowait: bool = False) -> None:
        closed.append(nowait)
        await disconnect(nowait=nowait)

    first.disconnect = record_disconnect  # type: ignore[method-assign,assignment] # a spy
    server.behaviours = [RedisConnectionError("broken")]
    assert await batcher.transact([("ECHO", "x")]) == [b"x"]
    # The pool may lend the connection again, but only after it was closed.
    assert closed == [True]
    assert server.redis.connection_pool._in_use_connections == {server.connections[-1]}


async def test_a_rejected_command_sends_the_calls_of_its_group_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_batcher, "MAX_GROUP_CALLS", 2)
    batcher = new_batcher(server)
    aborted = ResponseError("EXECABORT Transaction discarded")
    rejected = ResponseError("ERR unknown command")
    wrong = [b"OK", rejected, aborted]
    groups = [b"OK", b"QUEUED", rejected, aborted]
    alone = [b"OK", b"QUEUED", [b"a"], *wrong, *wrong, b"OK", b"QUEUED", [b"b"]]
    server.behaviours = [replies_with([*groups, *groups]), replies_with(alone)]
    results = await asyncio.gather(
        *(batcher.transact([(name,)]) for name in ("A", "WRONG", "WRONG", "B")),
        return_exceptions=True,
    )
    assert [results[0], results[3]] == [[b"a"], [b"b"]]
    for result in results[1:3]:
        assert seen(result) == (HistoryFailed, "ResponseError: ERR")
    assert server.requests == [4 + FRAME, 4 + 3 * FRAME]


async def test_a_rejected_single_call_is_not_sent_again(server: Server) -> None:
    batcher = new_batcher(server)
    rejected = ResponseError("NOREPLICAS Not enough good replicas")
    aborted = ResponseError("EXECABORT Transaction discarded")
    server.behaviours = [replies_with([b"OK", rejected, aborted])]
    with pytest.raises(HistoryUnavailable) as failed:
        await batcher.transact([("SET", "k", "v")])
    assert seen(failed.value) == (HistoryUnavailable, "ResponseError: NOREPLICAS")
    assert len(server.requests) == 1


async def test_the_first_error_of_a_transaction_fails_its_caller(server: Server) -> None:
    batcher = new_batcher(server)
    first, second = ResponseError("WRONGTYPE first"), ResponseError("OOM second")
    executed = [b"1", b"2", first, second, b"5"]
    server.behaviours = [replies_with([b"OK", *[b"QUEUED"] * 5, executed])]
    results = await asyncio.gather(
        batcher.transact([("A",), ("B",)]),
        batcher.transact([("C",), ("D",)]),
        batcher.transact([("E",)]),
        return_exceptions=True,
    )
    assert [results[0], results[2]] == [[b"1", b"2"], [b"5"]]
    assert seen(results[1]) == (HistoryFailed, "ResponseError: WRONGTYPE")


async def test_a_queue_of_too_many_bytes_rejects_calls(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [("ECHO", "x")]
    monkeypatch.setattr(command_batcher, "MAX_WAITING_BYTES", len(command_batcher._pack(call)))
    batcher = new_batcher(server)
    for _ in range(2):
        # The second call still fits; a sent call does not occupy the queue.
        accepted = [batcher.transact(call), batcher.transact(call)]
        with pytest.raises(HistoryUnavailable) as rejected:
            batcher.transact(call)
        assert rejected.value.detail == "2 calls are waiting already"
        assert rejected.value.retry_after_s == 2.0
        assert await asyncio.gather(*accepted) == [[b"x"], [b"x"]]


async def test_a_queue_of_too_many_calls_rejects_calls(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_batcher, "MAX_WAITING_CALLS", 2)
    batcher = new_batcher(server)
    accepted = [batcher.transact([("ECHO", number)]) for number in range(2)]
    with pytest.raises(HistoryUnavailable) as rejected:
        batcher.transact([("ECHO", "y")])
    assert rejected.value.detail == "2 calls are waiting already"
    assert await asyncio.gather(*accepted) == [[b"0"], [b"1"]]


async def test_a_batch_ends_with_the_call_that_exceeds_its_bytes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = [("ECHO", "xxxx")]
    size = len(command_batcher._pack(call))
    monkeypatch.setattr(command_batcher, "MAX_BATCH_BYTES", 2 * size)
    batcher = new_batcher(server)
    await asyncio.gather(*(batcher.transact(call) for _ in range(5)))
    assert server.requests == [3, 2]


async def test_a_cancelled_call_is_not_sent(server: Server) -> None:
    batcher = new_batcher(server)
    calls = [batcher.transact([("ECHO", number)]) for number in range(3)]
    calls[1].cancel()
    assert [await calls[0], await calls[2]] == [[b"0"], [b"2"]]
    assert server.requests == [2]


async def test_a_call_that_is_cancelled_while_its_batch_runs_does_not_affect_the_others(
    server: Server,
) -> None:
    batcher = new_batcher(server)
    release = asyncio.Event()
    server.behaviours = [blocked(release)]
    calls = [batcher.transact([("ECHO", number)]) for number in range(3)]
    await until(lambda: server.requests == [3])
    calls[1].cancel()
    release.set()
    assert [await calls[0], await calls[2]] == [[b"0"], [b"2"]]


async def test_calls_that_arrive_during_two_flushes_wait_for_one_of_them(server: Server) -> None:
    batcher = new_batcher(server)
    await batcher.transact([("ECHO", "earlier")])
    release = asyncio.Event()
    server.behaviours = [blocked(release), blocked(release)]
    calls = []
    for number in range(2):
        calls.append(batcher.transact([("ECHO", number)]))
        await until(lambda: len(server.requests) == 1 + len(calls))
    calls += [batcher.transact([("ECHO", number)]) for number in (2, 3, 4)]
    assert (await asyncio.wait(calls, timeout=0.01))[0] == set()
    assert server.requests == [1, 1, 1]
    release.set()
    assert await asyncio.gather(*calls) == [[b"%d" % number] for number in range(5)]
    assert server.requests == [1, 1, 1, 3]


async def test_a_call_that_waits_for_the_deadline_is_not_sent(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_batcher, "MAX_FLUSHES", 1)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    batcher = new_batcher(server, timeout_s=2)
    release = asyncio.Event()
    server.behaviours = [blocked(release)]
    first = batcher.transact([("ECHO", "first")])
    await until(lambda: server.requests == [1])
    late = batcher.transact([("ECHO", "late")])
    now = 100.5
    in_time = batcher.transact([("ECHO", "in time")])
    now = 102.25
    release.set()
    results = await asyncio.gather(first, late, in_time, return_exceptions=True)
    assert [str(late) for late in results[:2]] == ["no answer within 2 s", "not sent within 2 s"]
    assert results[2] == [b"in time"]
    assert server.requests == [1, 1]


async def test_the_batcher_waits_for_its_calls_when_it_closes(server: Server) -> None:
    release = asyncio.Event()
    server.behaviours = [blocked(release)]

    async def use() -> Awaitable[list[Any]]:
        async with CommandBatcher(server.redis, timeout_s=TIMEOUT_S) as batcher:
            call = batcher.transact([("ECHO", "x")])
            await until(lambda: server.requests == [1])
        return call

    closing = asyncio.create_task(use())
    await until(lambda: server.requests == [1])
    for _ in range(5):
        await server._sleep(0)
    assert not closing.done()
    release.set()
    assert await (await closing) == [b"x"]
