"""Streamed turns that fail: an HTTP status before the first text, an event afterwards."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events
from tests.support.groq import MockGroq
from tests.support.streams import STREAM_REQUEST, history

KEY = {"Idempotency-Key": "0d5b3a0e-5d0e-4d0f-8f0c-3d7f7a2b9c55"}
# Status and code for each failure of Groq.
FAILURES = {
    "400": (400, "completion_rejected"),
    "429": (429, "rate_limited"),
    "503": (503, "completion_overloaded"),
    "500": (502, "completion_unavailable"),
    "drop": (502, "completion_unavailable"),
}


@pytest.mark.parametrize("headers", [{}, KEY])
@pytest.mark.parametrize("fail", FAILURES)
async def test_a_failure_before_the_first_text_is_an_http_status(
    serve: Serve, groq: MockGroq, headers: dict[str, str], fail: Any
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = fail
    response = await api.post(f"{BASE}/chat", json=STREAM_REQUEST, headers=headers)
    await assert_error(response, *FAILURES[fail])
    # The user message is stored under the id of the turn, unless Groq has rejected it.
    expected = [] if fail == "400" else [response.headers["X-Turn-ID"]]
    assert [message["id"] for message in await history(api)] == expected


async def test_the_retry_after_of_groq_is_returned_for_a_stream(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = "429"
    groq.options.retry_after_s = 17
    response = await api.post(f"{BASE}/chat", json=STREAM_REQUEST)
    await assert_error(response, 429, "rate_limited")
    assert response.headers["Retry-After"] == "17"


async def test_a_request_that_follows_the_turn_of_another_worker_fails_with_its_status(
    serve: Serve, groq: MockGroq
) -> None:
    first, second = await serve(groq_max_retries=0), await serve(groq_max_retries=0)
    groq.options.fail = "429"
    groq.options.latency_ms = 300
    responses = await asyncio.gather(
        *(
            api.post(f"{BASE}/chat", json=STREAM_REQUEST, headers=KEY)
            for api in (first, second, first, second)
        )
    )
    for response in responses:
        await assert_error(response, 429, "rate_limited")
    assert len({response.headers["X-Turn-ID"] for response in responses}) == 1
    assert len(groq.requests) == 1


async def test_a_failure_after_the_wait_is_an_error_event(
    serve: Serve, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groqchat.services.turns.turn.FIRST_TEXT_WAIT_S", 0.1)
    api = await serve(groq_max_retries=0)
    groq.options.fail = "500"
    groq.options.latency_ms = 400
    response = await api.post(f"{BASE}/chat", json=STREAM_REQUEST)
    assert response.status == 200
    events = await all_events(response)
    assert [(event.id, event.name) for event in events] == [(1, "start"), (2, "error")]
    assert events[1].data["error"]["code"] == "completion_unavailable"
    assert events[0].data["turn_id"] == response.headers["X-Turn-ID"]


async def test_a_stream_and_its_resumption_name_their_turn_in_a_header(
    api: ClientSession,
) -> None:
    response = await api.post(f"{BASE}/chat", json=STREAM_REQUEST)
    events = await all_events(response)
    turn_id = response.headers["X-Turn-ID"]
    assert events[0].data["turn_id"] == turn_id
    resumed = await api.get(f"{BASE}/chat/{turn_id}/events")
    assert resumed.headers["X-Turn-ID"] == turn_id
    assert await all_events(resumed) == events


async def test_the_events_of_a_failed_turn_can_be_read_with_status_200(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = "500"
    failed = await api.post(f"{BASE}/chat", json=STREAM_REQUEST)
    turn_id = failed.headers["X-Turn-ID"]
    events = await all_events(await api.get(f"{BASE}/chat/{turn_id}/events"))
    assert [event.name for event in events] == ["start", "error"]
