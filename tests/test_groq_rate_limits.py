"""Requests while Groq limits a model: they wait or fail without a call, and start one by one."""

import asyncio
import time
from collections import Counter
from typing import Any, Literal

import pytest
from aiohttp import ClientResponse, ClientSession

from groqchat.services.groq.rate_limits import FIRST_INTERVAL_S
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq

MODEL = "openai/gpt-oss-20b"
OTHER_MODEL = "llama-3.1-8b-instant"


async def chat(api: ClientSession, **fields: Any) -> ClientResponse:
    return await api.post(f"{BASE}/chat", json={"message": "Hello", **fields})


async def openai(api: ClientSession, **fields: Any) -> ClientResponse:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **fields}
    return await api.post("/openai/v1/chat/completions", json=body)


def limit_groq(groq: MockGroq, retry_after_s: float) -> None:
    groq.options.fail, groq.options.retry_after_s = "429", retry_after_s


async def test_a_storm_of_429s_is_remembered(serve: Serve, groq: MockGroq) -> None:
    api = await serve()
    limit_groq(groq, 3)
    responses = await asyncio.gather(*(chat(api) for _ in range(200)))

    assert Counter(response.status for response in responses) == {429: 200}
    assert all(1 <= int(response.headers["Retry-After"]) <= 8 for response in responses)
    # Each request may have been sent before the first 429 arrived, but almost none is repeated.
    assert len(groq.requests) <= 200 + 45

    sent = len(groq.requests)
    limit_groq(groq, 30)
    await asyncio.gather(*(chat(api) for _ in range(50)))
    assert len(groq.requests) <= sent + 50
    sent = len(groq.requests)
    responses = await asyncio.gather(*(chat(api) for _ in range(200)))
    assert Counter(response.status for response in responses) == {429: 200}
    assert len(groq.requests) == sent


async def test_requests_for_another_model_continue(serve: Serve, groq: MockGroq) -> None:
    api = await serve()
    limit_groq(groq, 30)
    await assert_error(await chat(api), 429, "rate_limited")
    groq.options.fail = None

    assert (await chat(api, model=OTHER_MODEL)).status == 200
    started = time.monotonic()
    response = await chat(api)
    error = await assert_error(response, 429, "rate_limited")
    assert time.monotonic() - started < 5
    assert int(response.headers["Retry-After"]) in {29, 30}
    assert error["message"] == "Groq's rate limit is exhausted."
    assert len(groq.requests) == 2


async def test_a_request_during_a_short_limit_waits_and_is_answered(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(groq_max_retries=0)
    limit_groq(groq, 0.5)
    await assert_error(await chat(api), 429, "rate_limited")
    groq.options.fail = None
    started = time.monotonic()

    assert (await chat(api)).status == 200
    assert 0.2 < time.monotonic() - started < 5


async def test_no_request_waits_beyond_its_deadline(serve: Serve, groq: MockGroq) -> None:
    api = await serve(groq_timeout_s=1)
    limit_groq(groq, 4)
    await assert_error(await chat(api), 429, "rate_limited")
    groq.options.fail = None
    await assert_error(await chat(api), 429, "rate_limited")
    assert len(groq.requests) == 1


async def test_waiting_requests_do_not_all_start_at_once(serve: Serve, groq: MockGroq) -> None:
    api = await serve(groq_max_retries=0)
    limit_groq(groq, 1)
    await assert_error(await chat(api), 429, "rate_limited")
    groq.options.fail = None
    times: list[float] = []

    async def record() -> None:
        times.append(time.monotonic())

    groq.before_response = record
    responses = await asyncio.gather(*(chat(api) for _ in range(20)))

    assert Counter(response.status for response in responses) == {200: 20}
    assert times[-1] - times[0] > 15 * FIRST_INTERVAL_S


@pytest.mark.parametrize("failure", ["400", "429", "500"])
async def test_a_failure_after_a_limit_does_not_let_requests_start_faster(
    serve: Serve, groq: MockGroq, failure: Literal["400", "429", "500"]
) -> None:
    api = await serve()
    limit_groq(groq, 0.3)
    assert (await openai(api)).status == 429
    groq.options.fail, groq.options.retry_after_s = failure, None
    for _ in range(8):
        assert (await openai(api)).status == int(failure)
    groq.options.fail = None
    times: list[float] = []

    async def record() -> None:
        times.append(time.monotonic())

    groq.before_response = record
    responses = await asyncio.gather(*(openai(api) for _ in range(8)))

    assert Counter(response.status for response in responses) == {200: 8}
    assert times[-1] - times[0] > 4 * FIRST_INTERVAL_S


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_openai_endpoint_respects_the_limits_too(
    serve: Serve, groq: MockGroq, *, is_streamed: bool
) -> None:
    api = await serve()
    limit_groq(groq, 20)
    first = await openai(api, stream=is_streamed)
    assert (first.status, first.headers["Retry-After"]) == (429, "20")
    assert len(groq.requests) == 1
    groq.options.fail = None

    second = await openai(api, stream=is_streamed)
    assert second.status == 429
    assert second.headers["Retry-After"] in {"19", "20"}
    error = (await second.json())["error"]
    assert set(error) == {"message", "type", "code"}
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    await assert_error(await chat(api), 429, "rate_limited")
    assert len(groq.requests) == 1
    assert (await openai(api, model=OTHER_MODEL)).status == 200


async def test_a_limit_of_chat_applies_to_the_openai_endpoint(serve: Serve, groq: MockGroq) -> None:
    api = await serve()
    limit_groq(groq, 20)
    await assert_error(await chat(api, stream=False), 429, "rate_limited")
    assert (await openai(api)).status == 429
    assert len(groq.requests) == 1


async def test_a_message_of_a_limited_openai_session_stays_stored(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve()
    limit_groq(groq, 20)
    await openai(api)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"X-Session-Id": "s"}
    path = "/openai/v1/chat/completions"
    assert (await api.post(path, json=body, headers=headers)).status == 429
    history = await (await api.get(f"{BASE}/history/s")).json()
    assert [message["content"] for message in history["messages"]] == ["Hello"]


async def test_a_turn_that_is_stopped_while_it_waits_is_not_sent(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(groq_max_retries=0)
    limit_groq(groq, 3)
    await assert_error(await chat(api), 429, "rate_limited")
    groq.options.fail = None
    turn = await chat(api, stream=True)
    turn_id = (await turn.content.readuntil(b'"turn_id":"') + await turn.content.readuntil(b'"'))[
        -18:-1
    ].decode()
    assert (await api.post(f"{BASE}/chat/{turn_id}/stop")).status == 200
    assert "event: done" in await turn.text()
    assert (await chat(api)).status == 200
    assert len(groq.requests) == 2
