"""The `Retry-After` header of Groq: numbers, dates, and values that clients must not receive."""

import time
from email.utils import formatdate

import pytest
from aiohttp import web

from groqchat.services.groq.retry_after import parse_retry_after
from tests.conftest import Serve
from tests.support.api import assert_error
from tests.support.groq import MockGroq
from tests.test_groq_rate_limits import chat, openai

DAY_S = 86_400


def reject(groq: MockGroq, retry_after: str) -> None:
    async def respond() -> None:
        body = '{"error": {"message": "Limit", "type": "requests", "code": "rate_limit_exceeded"}}'
        headers = {"Retry-After": retry_after}
        raise web.HTTPTooManyRequests(headers=headers, text=body, content_type="application/json")

    groq.before_response = respond


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2", 2.0),
        ("0.25", 0.25),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("100000000000000000000", DAY_S),
        ("1" * 400, DAY_S),
        (formatdate(0, usegmt=True), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", DAY_S),
        *(
            (value, None)
            for value in ("", "-5", "nan", "inf", "1e3", "1_0", "٣", "soon", "Fri, 99")
        ),
        (None, None),
    ],
)
def test_a_retry_after_is_a_number_of_seconds_of_at_most_one_day(
    value: str | None, expected: float | None
) -> None:
    assert parse_retry_after(value) == expected


@pytest.mark.parametrize(
    ("zone", "offset_s"), [("GMT", 0), ("+0000", 0), ("-0000", 0), ("+0100", 3600)]
)
def test_a_retry_after_can_be_a_date(zone: str, offset_s: int) -> None:
    date = formatdate(time.time() + 100 + offset_s).replace("-0000", zone)
    seconds = parse_retry_after(date)
    assert seconds is not None
    assert 90 < seconds <= 100


@pytest.mark.parametrize("stream", [False, True])
async def test_no_request_is_sent_before_the_date_of_a_limit(
    serve: Serve, groq: MockGroq, *, stream: bool
) -> None:
    api = await serve()
    reject(groq, formatdate(time.time() + 30, usegmt=True))
    for _ in range(2):
        response = await chat(api, stream=stream)
        await assert_error(response, 429, "rate_limited")
        assert 25 < int(response.headers["Retry-After"]) <= 30
    response = await openai(api, stream=stream)
    assert response.status == 429
    assert 25 < int(response.headers["Retry-After"]) <= 30
    assert len(groq.requests) == 1


async def test_a_limit_whose_date_has_passed_does_not_delay_the_next_request(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(groq_max_retries=0)
    reject(groq, formatdate(0, usegmt=True))
    for _ in range(2):
        await assert_error(await chat(api), 429, "rate_limited")
    assert len(groq.requests) == 2


@pytest.mark.parametrize(
    ("value", "forwarded"),
    [
        ("7", "7"),
        ("0.5", "0.5"),
        ("100000000000000000000", str(DAY_S)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", str(DAY_S)),
        ("soon", None),
    ],
)
async def test_the_openai_endpoint_forwards_a_retry_after_in_seconds(
    serve: Serve, groq: MockGroq, value: str, forwarded: str | None
) -> None:
    api = await serve()
    reject(groq, value)
    response = await openai(api)
    assert response.status == 429
    assert response.headers.get("Retry-After") == forwarded


async def test_the_retry_after_of_chat_is_at_most_one_day(serve: Serve, groq: MockGroq) -> None:
    api = await serve()
    reject(groq, "100000000000000000000")
    response = await chat(api)
    await assert_error(response, 429, "rate_limited")
    assert response.headers["Retry-After"] == str(DAY_S)
