"""A Redis server that stops answering: how long requests wait, and what is stored afterwards."""

import asyncio
import statistics
import time
from typing import Any

import pytest
from aiohttp import ClientSession
from pydantic import SecretStr

from groqchat.openai_paths import COMPLETIONS_PATH
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.redis_servers import RedisServer
from tests.support.streams import history

TIMEOUT_S = 2.0
# A turn waits for REDIS_TIMEOUT_S once, and a little longer to save its answer. Two deadlines one
# after the other would exceed this.
LIMIT_S = 3.9
OPENAI_BODY = {
    "model": "openai/gpt-oss-20b",
    "messages": [{"role": "user", "content": "Hello"}],
}


@pytest.fixture
async def frozen_api(serve: Serve, own_redis_server: RedisServer) -> ClientSession:
    """A client of a service that has used its Redis server before that server froze."""
    api = await serve(
        redis_url=SecretStr(own_redis_server.url()), redis_timeout_s=TIMEOUT_S, groq_max_retries=0
    )
    assert (await chat(api, "before"))["history_saved"] is True
    own_redis_server.freeze()
    return api


async def chat(api: ClientSession, message: str, session_id: str = "s") -> dict[str, Any]:
    body = {"message": message, "session_id": session_id}
    response = await api.post(f"{BASE}/chat", json=body)
    found: dict[str, Any] = await response.json()
    assert response.status == 200, found
    return found


async def test_chats_at_100_requests_per_second_wait_for_one_deadline(
    frozen_api: ClientSession, own_redis_server: RedisServer
) -> None:
    async def timed_chat(number: int) -> tuple[float, bool]:
        await asyncio.sleep(number / 100)
        began = time.monotonic()
        answer = await chat(frozen_api, "Hello", session_id=f"s{number}")
        return time.monotonic() - began, answer["history_saved"]

    results = await asyncio.gather(*(timed_chat(number) for number in range(150)))
    assert {is_saved for _, is_saved in results} == {False}
    # A busy machine delays some of them; two deadlines would delay all.
    assert statistics.median(seconds for seconds, _ in results) < LIMIT_S
    own_redis_server.thaw()
    assert (await chat(frozen_api, "after"))["history_saved"] is True


async def test_a_failed_completion_waits_for_one_deadline_too(
    frozen_api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail = "500"
    began = time.monotonic()
    response = await frozen_api.post(f"{BASE}/chat", json={"message": "x", "session_id": "s"})
    assert response.status == 502
    assert time.monotonic() - began < LIMIT_S


async def test_a_completion_in_a_session_of_the_openai_endpoint_waits_for_one_deadline(
    frozen_api: ClientSession,
) -> None:
    began = time.monotonic()
    response = await frozen_api.post(
        COMPLETIONS_PATH, json=OPENAI_BODY, headers={"X-Session-Id": "s"}
    )
    assert (response.status, response.headers["X-History-Saved"]) == (200, "false")
    assert time.monotonic() - began < LIMIT_S


async def test_both_messages_are_stored_if_redis_answers_again_during_the_completion(
    frozen_api: ClientSession, own_redis_server: RedisServer, groq: MockGroq
) -> None:
    async def thaw() -> None:
        own_redis_server.thaw()

    groq.before_response = thaw
    answer = await chat(frozen_api, "sent to a frozen Redis")
    assert answer["history_saved"] is True
    stored = [message["content"] for message in await history(frozen_api)]
    assert stored[2:] == ["sent to a frozen Redis", answer["message"]]


async def test_an_unconfirmed_answer_is_stored_if_redis_answers_again_soon(
    frozen_api: ClientSession, own_redis_server: RedisServer
) -> None:
    answer = await chat(frozen_api, "Hello")
    assert answer["history_saved"] is False
    own_redis_server.thaw()

    async def contents() -> list[str]:
        return [message["content"] for message in await history(frozen_api)]

    async with asyncio.timeout(5):
        while (await contents())[2:] != ["Hello", answer["message"]]:
            await asyncio.sleep(0.01)
