"""Completions: errors of Groq, retries, deadlines and redaction."""

import asyncio
import gc
import inspect
import time
from collections.abc import Iterator
from typing import Any, get_args

import groq as groq_sdk
import httpx
import pytest
from aiohttp import ClientResponse, ClientSession
from pydantic import SecretStr

from groqchat.errors import CompletionError, CompletionUnavailable
from groqchat.offline.options import Failure
from groqchat.services.groq.client import open_groq_client
from groqchat.services.groq.errors import BY_CLASS, completion_error
from groqchat.settings import Settings
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.garbage import no_gc
from tests.support.groq import MockGroq

EXPECTED: dict[Failure, tuple[int, str, str | None]] = {
    "400": (400, "completion_rejected", None),
    "401": (502, "completion_unavailable", None),
    "403": (502, "completion_unavailable", None),
    "404": (422, "unknown_model", "model"),
    "408": (504, "completion_timeout", None),
    "409": (502, "completion_unavailable", None),
    "413": (413, "prompt_too_large", None),
    "422": (400, "completion_rejected", None),
    "429": (429, "rate_limited", None),
    "498": (503, "completion_overloaded", None),
    "499": (502, "completion_unavailable", None),
    "500": (502, "completion_unavailable", None),
    "502": (502, "completion_unavailable", None),
    "503": (503, "completion_overloaded", None),
    "504": (504, "completion_timeout", None),
    "drop": (502, "completion_unavailable", None),
    "hang": (504, "completion_timeout", None),
    "garbage": (502, "completion_unavailable", None),
    "empty": (502, "completion_unavailable", None),
}


async def chat(api: ClientSession) -> ClientResponse:
    return await api.post(f"{BASE}/chat", json={"message": "Hello", "session_id": "s"})


def test_the_table_contains_every_failure_of_the_mock_groq_server() -> None:
    assert set(EXPECTED) == set(get_args(Failure)) - {"surrogate"}


@pytest.mark.parametrize("failure", EXPECTED)
async def test_each_failure_of_groq_has_the_expected_status_and_code(
    serve: Serve, groq: MockGroq, failure: Failure
) -> None:
    groq.options.fail = failure
    api = await serve(groq_max_retries=0, groq_timeout_s=0.5)
    status, code, param = EXPECTED[failure]

    error = await assert_error(await chat(api), status, code, param=param)

    if status >= 500:
        assert "key" not in error["message"].lower()


def sdk_errors() -> Iterator[type[groq_sdk.GroqError]]:
    """Yield the base exception of the SDK and all its subclasses."""
    pending = [groq_sdk.GroqError]
    while pending:
        kind = pending.pop()
        yield kind
        pending += kind.__subclasses__()


def make_error(kind: type[groq_sdk.GroqError]) -> groq_sdk.GroqError:
    request = httpx.Request("POST", "http://groq.test")
    status = getattr(kind, "status_code", 500)
    response = httpx.Response(status if isinstance(status, int) else 500, request=request)
    known: dict[str, Any] = {
        "message": "text",
        "request": request,
        "response": response,
        "body": None,
    }
    parameters = [] if kind is groq_sdk.GroqError else list(inspect.signature(kind).parameters)
    return kind(**{name: known[name] for name in parameters if name in known})


def test_every_public_exception_of_the_sdk_is_in_the_mapping() -> None:
    public = {
        value
        for value in list(vars(groq_sdk).values())
        if isinstance(value, type) and issubclass(value, groq_sdk.GroqError)
    }
    assert public == set(BY_CLASS)


@pytest.mark.parametrize("kind", list(sdk_errors()), ids=lambda kind: kind.__name__)
def test_every_exception_of_the_sdk_is_converted_to_a_specific_completion_error(
    kind: type[groq_sdk.GroqError],
) -> None:
    mapped = completion_error(make_error(kind))
    assert isinstance(mapped, CompletionError)
    assert type(mapped) is not CompletionError


def test_an_unknown_exception_of_the_sdk_is_converted_too() -> None:
    class TeapotError(groq_sdk.APIStatusError):
        pass

    assert type(completion_error(make_error(TeapotError))) is CompletionUnavailable


async def test_a_retryable_failure_is_retried(serve: Serve, groq: MockGroq) -> None:
    groq.options.fail, groq.options.fail_times = "500", 2
    groq.options.retry_after_s = 0
    api = await serve(groq_max_retries=2)

    assert (await chat(api)).status == 200
    assert len(groq.requests) == 3


@pytest.mark.parametrize("failure", ["400", "401", "404", "413", "422"])
async def test_a_permanent_failure_is_not_retried(
    api: ClientSession, groq: MockGroq, failure: Failure
) -> None:
    groq.options.fail = failure
    assert (await chat(api)).status >= 400
    assert len(groq.requests) == 1


async def test_the_number_of_retries_is_limited(serve: Serve, groq: MockGroq) -> None:
    groq.options.fail, groq.options.retry_after_s = "503", 0
    api = await serve(groq_max_retries=3)

    await assert_error(await chat(api), 503, "completion_overloaded")
    assert len(groq.requests) == 4


async def test_a_long_retry_after_is_returned_to_the_client_without_a_retry(
    api: ClientSession, groq: MockGroq
) -> None:
    groq.options.fail, groq.options.retry_after_s = "429", 59.2
    started = time.monotonic()
    response = await chat(api)

    error = await assert_error(response, 429, "rate_limited")
    assert response.headers["Retry-After"] == "60"
    assert len(groq.requests) == 1
    assert time.monotonic() - started < 30
    assert "org_***" in error["message"]
    assert "org_01" not in await response.text()


async def test_no_retry_starts_if_its_delay_exceeds_the_deadline(
    serve: Serve, groq: MockGroq
) -> None:
    groq.options.fail, groq.options.retry_after_s = "429", 4
    api = await serve(groq_timeout_s=2)

    await assert_error(await chat(api), 429, "rate_limited")
    assert len(groq.requests) == 1


async def test_a_slow_completion_times_out_at_the_deadline(serve: Serve, groq: MockGroq) -> None:
    groq.options.latency_ms = 60_000
    api = await serve(groq_timeout_s=0.3)

    async with asyncio.timeout(20):
        await assert_error(await chat(api), 504, "completion_timeout")


async def test_the_log_contains_the_cause_without_prompt_or_key(
    serve: Serve, groq: MockGroq, caplog: pytest.LogCaptureFixture
) -> None:
    groq.options.fail = "401"
    api = await serve(groq_max_retries=0)
    response = await api.post(
        f"{BASE}/chat", json={"message": "my-secret"}, headers={"X-Request-ID": "trace-7"}
    )

    assert response.status == 502
    assert "AuthenticationError 401: invalid_api_key" in caplog.text
    assert "my-secret" not in caplog.text
    assert "gsk_test" not in caplog.text


async def test_the_log_contains_the_id_that_groq_gave_to_the_request(
    serve: Serve, groq: MockGroq, caplog: pytest.LogCaptureFixture
) -> None:
    groq.options.fail = "500"
    groq.response_headers = {"X-Request-ID": "req_01mock"}
    api = await serve(groq_max_retries=0)
    await assert_error(await chat(api), 502, "completion_unavailable")
    assert (
        "InternalServerError 500: internal_server_error (Groq's request req_01mock)" in caplog.text
    )

    groq.response_headers = {"X-Request-ID": "req " + "x" * 99}
    await assert_error(await chat(api), 502, "completion_unavailable")
    assert "xxx" not in caplog.text


async def test_a_response_header_that_is_not_ascii_is_accepted(
    serve: Serve, groq: MockGroq
) -> None:
    groq.options.fail = "429"
    groq.response_headers = {"X-Note": "caf\u00e9"}
    api = await serve(groq_max_retries=0)
    await assert_error(await chat(api), 429, "rate_limited")


async def test_a_failed_connection_to_groq_creates_no_reference_cycle() -> None:
    settings = Settings(
        groq_api_key=SecretStr("k"), groq_base_url="http://127.0.0.1:9", groq_max_retries=0
    )
    async with open_groq_client(settings, settings.groq_base_url) as client:

        async def fail() -> None:
            with pytest.raises(CompletionUnavailable):
                await client.list_models()

        await fail()
        with no_gc():
            for _ in range(20):
                await fail()
            assert gc.collect() < 20
