"""Answers that a paused Redis stores after their deadline, and that must not stay."""

import asyncio

import pytest
from aiohttp import ClientSession
from fakeredis import FakeAsyncRedis, FakeServer
from pydantic import SecretStr
from redis.asyncio import Redis

from groqchat.errors import HistoryUnavailable
from groqchat.services.history_store import HistoryStore
from groqchat.storage import keys
from groqchat.storage.claims import Claim
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.late_writes import CHECKS
from groqchat.storage.messages import encode_member
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.recording_batcher import RecordingBatcher
from tests.support.redis_servers import RedisServer
from tests.support.store import new_message
from tests.support.streams import history
from tests.support.turn_workers import RECORD, RECORD_VALUE, new_claim

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
QUESTION = {"message": "Hello", "session_id": "s"}
LIMIT_S = 10.0


@pytest.fixture
async def late_api(serve: Serve, own_redis_server: RedisServer) -> ClientSession:
    """A client of a service that waits briefly for its own Redis server."""
    url = SecretStr(own_redis_server.url())
    return await serve(redis_url=url, redis_timeout_s=0.4)


@pytest.fixture
def freezing(
    late_api: ClientSession, own_redis_server: RedisServer, groq: MockGroq
) -> tuple[ClientSession, RedisServer, MockGroq]:
    """The client, its Redis server, and the Groq server that may freeze it."""
    return late_api, own_redis_server, groq


async def calls_of(server: RedisServer, command: str) -> int:
    async with Redis.from_url(server.url(), protocol=2) as redis:
        stats = await redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def until_called(server: RedisServer, command: str, calls: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await calls_of(server, command) < calls:
            await asyncio.sleep(0.01)


async def until_removed(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(LIMIT_S):
        while "removing late messages from session s" not in caplog.messages:
            await asyncio.sleep(0.01)


async def until_written(server: RedisServer, calls: int) -> None:
    """Wait until Redis has executed a ZADD that it received while it was paused."""
    await until_called(server, "zadd", calls + 1)


@pytest.mark.parametrize(
    ("headers", "fields"),
    [({}, {}), (KEY, {}), ({}, {"stream": True}), (KEY, {"stream": True})],
    ids=["plain", "keyed", "stream", "keyed stream"],
)
async def test_a_deleted_session_does_not_return_with_a_late_answer(
    freezing: tuple[ClientSession, RedisServer, MockGroq],
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    fields: dict[str, bool],
) -> None:
    late_api, own_redis_server, groq = freezing
    caplog.set_level("INFO")

    async def delete_and_freeze() -> None:
        response = await late_api.delete(f"{BASE}/history/s")
        assert response.status == 200
        own_redis_server.freeze()

    groq.before_response = delete_and_freeze
    body = {**QUESTION, **fields}
    async with late_api.post(f"{BASE}/chat", json=body, headers=headers) as response:
        assert response.status == 200
        assert '"history_saved":false' in await response.text()
    own_redis_server.thaw()
    await until_removed(caplog)
    async with asyncio.timeout(LIMIT_S):
        while await history(late_api):
            await asyncio.sleep(0.05)
    sessions = await late_api.get(f"{BASE}/sessions")
    assert (await sessions.json())["sessions"] == []


async def test_a_late_answer_of_a_superseded_attempt_is_not_stored(
    late_api: ClientSession, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    calls = 0

    async def supersede_and_freeze() -> None:
        nonlocal calls
        async with Redis.from_url(own_redis_server.url(), protocol=2) as redis:
            (claim,) = await redis.keys("chat:claim:*")
            await redis.set(claim, "another attempt")
        calls = await calls_of(own_redis_server, "eval")
        own_redis_server.freeze()

    groq.before_response = supersede_and_freeze
    async with late_api.post(f"{BASE}/chat", json=QUESTION, headers=KEY) as response:
        await response.read()
    own_redis_server.thaw()
    await until_called(own_redis_server, "eval", calls + 1)
    assert [message["role"] for message in await history(late_api)] == ["user"]


async def test_a_late_answer_of_a_session_that_exists_stays(
    late_api: ClientSession, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    async def freeze() -> None:
        own_redis_server.freeze()

    groq.before_response = freeze
    async with late_api.post(f"{BASE}/chat", json=QUESTION) as response:
        answer = await response.json()
    assert answer["history_saved"] is False
    own_redis_server.thaw()
    await until_called(own_redis_server, "zcount", CHECKS)
    assert [message["id"] for message in await history(late_api)] == [
        answer["turn_id"],
        answer["message_id"],
    ]


async def test_a_process_that_ends_checks_its_late_writes(own_redis_server: RedisServer) -> None:
    url = own_redis_server.url()
    async with (
        Redis.from_url(url, protocol=2) as redis,
        CommandBatcher(redis, timeout_s=0.4) as batcher,
    ):
        store = HistoryStore(redis, batcher, ttl_s=1000, timeout_s=0.4)
        answer = new_message("late", "assistant")
        await store.get_session_size("s")
        async with store.checking_late_writes():
            own_redis_server.freeze()
            with pytest.raises(HistoryUnavailable):
                await store.save_messages("s", answer, user_message=new_message("deleted"))
            own_redis_server.thaw()
            await until_written(own_redis_server, 0)
        assert await store.get_session_size("s") == 0


@pytest.mark.parametrize("interruption", ["cancelled", "redis away"])
async def test_an_answer_whose_removal_was_interrupted_is_removed_later(interruption: str) -> None:
    async with FakeAsyncRedis(server=FakeServer()) as redis:
        batcher = RecordingBatcher(redis)
        store = HistoryStore(redis, batcher, ttl_s=1000, timeout_s=5)
        answer = new_message("late", "assistant")

        async def interrupt(_: int) -> None:
            if batcher.names[-1][0] == "ZREM":
                batcher.before = None
                if interruption == "redis away":
                    raise HistoryUnavailable("down")
                saving.cancel()
                await asyncio.sleep(0)

        batcher.before = interrupt
        saving = asyncio.create_task(
            store.save_messages("s", answer, user_message=new_message("deleted"))
        )
        with pytest.raises((HistoryUnavailable, asyncio.CancelledError)):
            await saving
        await redis.zadd("chat:session:s", {encode_member(answer): answer.score})
        async with store.checking_late_writes():
            pass
        assert await store.get_session_size("s") == 0


@pytest.mark.parametrize("holder", [None, "token 0", "token of a newer attempt"])
async def test_rejected_messages_are_removed_later_unless_a_newer_attempt_runs(
    holder: str | None,
) -> None:
    async with FakeAsyncRedis(server=FakeServer()) as redis:
        batcher = RecordingBatcher(redis)
        store = HistoryStore(redis, batcher, ttl_s=1000, timeout_s=5)
        rejected, claim = new_message("rejected"), new_claim()
        await store.save_messages("s", rejected)

        async def fail(_: int) -> None:
            raise HistoryUnavailable("down")

        batcher.before = fail
        await store.try_remove("s", rejected, claim=claim)
        batcher.before = None
        if holder:
            await redis.set(keys.claim_key(claim.turn_id), holder)
        async with store.checking_late_writes():
            pass
        is_newer = holder == "token of a newer attempt"
        assert await store.get_session_size("s") == (1 if is_newer else 0)


@pytest.mark.parametrize("claim", [None, new_claim()], ids=["plain", "keyed"])
@pytest.mark.parametrize("is_deleted", [False, True])
@pytest.mark.parametrize("has_record", [False, True])
async def test_a_late_first_save_does_not_restore_a_deleted_session(
    claim: Claim | None, *, is_deleted: bool, has_record: bool
) -> None:
    async with FakeAsyncRedis(server=FakeServer()) as redis:
        batcher = RecordingBatcher(redis)
        store = HistoryStore(redis, batcher, ttl_s=1000, timeout_s=5)
        messages = [new_message("late"), new_message("answer", "assistant")]

        async def fail(_: int) -> None:
            raise HistoryUnavailable("down")

        batcher.before = fail
        with pytest.raises(HistoryUnavailable):
            await store.save_messages("s", *messages, claim=claim)
        batcher.before = None
        if is_deleted:
            await store.clear_session("s")
            # Many other deletions do not hide this one.
            await redis.delete(keys.STOP_REQUESTS)
        if has_record:
            # The turn began after the deletion.
            await redis.set(RECORD, RECORD_VALUE)
        await store.save_messages("s", *messages)
        async with store.checking_late_writes():
            pass
        stays = not is_deleted or bool(claim and has_record)
        assert await store.get_session_size("s") == (2 if stays else 0)
