"""Further attempts at completions with an Idempotency-Key on the OpenAI-compatible endpoint."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from groqchat.services.history_store import HistoryStore
from groqchat.services.turns import local_turn
from groqchat.services.turns.turn import Turn
from groqchat.storage import keys
from tests.conftest import Serve
from tests.support.groq import MockGroq
from tests.support.streams import history, wait_until
from tests.test_openai_idempotency import HELLO, send, succeeds


async def test_a_further_attempt_replaces_the_answer_of_an_earlier_one(
    serve: Serve, groq: MockGroq, redis: Redis
) -> None:
    workers = [await serve(), await serve()]
    assert (await send(workers[0], session=True))[0] == 200

    async def is_over() -> bool:
        (claim,) = await redis.keys(f"{keys.CLAIM_PREFIX}*")
        return await redis.ttl(claim) > keys.TURN_LEASE_S

    await wait_until(is_over)
    # As if the first worker had died before it stored the events of the turn.
    for prefix in (keys.CLAIM_PREFIX, keys.TURN_PREFIX):
        await redis.delete(*await redis.keys(f"{prefix}*"))
    user_message, answer = await history(workers[0])
    assert (await send(workers[1], session=True))[0] == 200
    assert len(groq.requests) == 2
    same_message, other_answer = await history(workers[1])
    assert same_message == user_message
    assert (other_answer["role"], other_answer["id"] != answer["id"]) == ("assistant", True)


@pytest.mark.parametrize("stream", [False, True])
async def test_only_the_answer_of_the_newest_attempt_is_stored(
    serve: Serve, groq: MockGroq, redis: Any, *, stream: bool
) -> None:
    workers = [await serve(), await serve()]
    release = groq.hold()
    first = asyncio.create_task(send(workers[0], stream=stream, session=True))

    async def is_published() -> bool:
        return len(groq.requests) == 1 and bool(await redis.keys("chat:turn:*"))

    await wait_until(is_published)
    # As if the first worker had paused for longer than its lease.
    (name,) = await redis.keys("chat:claim:*")
    await redis.delete(name)
    second = asyncio.create_task(send(workers[1], stream=stream, session=True))

    async def both_run() -> bool:
        return len(groq.requests) == 2

    await wait_until(both_run)
    release.set()
    status, _, content = await second
    assert (status, b"turn_lost" in content) == (200, False)
    await first
    answers = [each for each in await history(workers[0]) if each["role"] == "assistant"]
    assert len(answers) == 1


async def test_the_answer_of_an_earlier_attempt_is_removed_although_the_attempt_is_stopped(
    serve: Serve, groq: MockGroq, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [await serve(), await serve()]
    release = groq.hold()
    first = asyncio.create_task(send(workers[0], session=True))

    async def is_published() -> bool:
        return len(groq.requests) == 1 and bool(await redis.keys("chat:turn:*"))

    await wait_until(is_published)
    (name,) = await redis.keys("chat:claim:*")
    await redis.delete(name)
    second = asyncio.create_task(send(workers[1], session=True))

    async def both_run() -> bool:
        return len(groq.requests) == 2

    await wait_until(both_run)
    remove = HistoryStore.remove_messages
    supersede = Turn.supersede
    is_superseded = asyncio.Event()

    def note(turn: Turn) -> None:
        supersede(turn)
        monkeypatch.setattr(local_turn, "SAFE_LEASE_S", 2.0)
        is_superseded.set()

    async def remove_later(store: HistoryStore, *arguments: Any) -> None:
        await is_superseded.wait()
        await remove(store, *arguments)

    monkeypatch.setattr(HistoryStore, "remove_messages", remove_later)
    monkeypatch.setattr(Turn, "supersede", note)
    # As if the first worker had paused for longer than its lease.
    monkeypatch.setattr(local_turn, "SAFE_LEASE_S", 0)
    release.set()
    assert await first == await second

    async def is_removed() -> bool:
        return [each["role"] for each in await history(workers[0])] == ["user", "assistant"]

    await wait_until(is_removed)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_further_attempt_stores_its_messages_once_although_another_turn_follows_them(
    api: ClientSession, groq: MockGroq, *, stream: bool
) -> None:
    await send(api, session=True, headers={"Idempotency-Key": "earlier"}, text="Earlier")
    groq.options.fail, groq.options.fail_times = "503", 1
    assert not await succeeds(api, session=True, stream=stream)
    assert (await send(api, session=True, headers={}, text="Other"))[0] == 200
    assert await succeeds(api, session=True, stream=stream)
    stored = [(each["role"], each["content"]) for each in await history(api)]
    users = [content for role, content in stored if role == "user"]
    assert users == ["Earlier", HELLO, "Other"]
    assert [role for role, _ in stored] == ["user", "assistant", "user", "user", *["assistant"] * 2]
    # The model receives the messages before those of the turn, as on the first attempt.
    assert groq.prompts[-1] == [*stored[:2], ("user", HELLO)]
