"""Responses of Groq that only the operator can resolve: never the client's fault, always logged."""

import logging
from typing import Any

import orjson
import pytest
from aiohttp import ClientResponse, ClientSession, web

from groqchat.errors import CompletionUnavailable
from groqchat.services.groq import service_faults
from groqchat.services.groq.errors import error_code, is_service_fault
from groqchat.services.groq.service_faults import LOG_INTERVAL_S, ServiceFaults
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq


async def chat(api: ClientSession, **fields: Any) -> ClientResponse:
    body = {"message": "Hello", "session_id": "s", **fields}
    return await api.post(f"{BASE}/chat", json=body)


async def contents(api: ClientSession) -> list[str]:
    response = await api.get(f"{BASE}/history/s")
    return [message["content"] for message in (await response.json())["messages"]]


def body(code: str) -> bytes:
    return orjson.dumps({"error": {"message": "text", "type": "t", "code": code}})


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines that report a fault of the service."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.ERROR and record.name == service_faults.log.name
    ]


async def test_a_404_of_a_wrong_base_url_is_not_the_fault_of_the_client(
    serve: Serve, groq: MockGroq, caplog: pytest.LogCaptureFixture
) -> None:
    api = await serve(groq_base_url=f"{groq.url}/wrong")

    await assert_error(await chat(api), 502, "completion_unavailable")
    assert await contents(api) == ["Hello"]
    assert len(reports(caplog)) == 1
    assert "status 404 unknown_url; check GROQ_BASE_URL" in reports(caplog)[0]


async def test_a_model_that_groq_does_not_know_is_the_fault_of_the_client(
    serve: Serve, groq: MockGroq, caplog: pytest.LogCaptureFixture
) -> None:
    groq.options.fail = "404"
    api = await serve()

    await assert_error(await chat(api), 422, "unknown_model", param="model")
    assert reports(caplog) == []


@pytest.mark.parametrize("failure", ["401", "403"])
async def test_a_rejected_key_is_reported_once_and_the_messages_stay_stored(
    serve: Serve, groq: MockGroq, caplog: pytest.LogCaptureFixture, failure: Any
) -> None:
    groq.options.fail = failure
    api = await serve()
    for _ in range(3):
        error = await assert_error(await chat(api), 502, "completion_unavailable")
        assert error["message"] == "The model failed to answer."

    assert await contents(api) == ["Hello"] * 3
    assert len(groq.requests) == 3
    assert len(reports(caplog)) == 1
    assert "GROQ_API_KEY" in reports(caplog)[0]
    assert "gsk_test" not in caplog.text


@pytest.mark.parametrize(
    "response", [web.HTTPFound("/elsewhere"), web.HTTPMethodNotAllowed("POST", ["GET"])], ids=repr
)
async def test_a_server_that_is_not_groq_is_not_the_fault_of_the_client(
    serve: Serve, groq: MockGroq, response: web.HTTPException
) -> None:
    async def fail() -> None:
        raise response

    groq.before_response = fail
    api = await serve()
    await assert_error(await chat(api), 502, "completion_unavailable")


@pytest.mark.parametrize("code", ["blocked_api_access", "organization_restricted"])
async def test_a_blocked_account_is_not_the_fault_of_the_client(
    serve: Serve, groq: MockGroq, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    async def block() -> None:
        raise web.HTTPBadRequest(text=body(code).decode(), content_type="application/json")

    groq.before_response = block
    api = await serve()
    await assert_error(await chat(api), 502, "completion_unavailable")
    assert len(groq.requests) == 1
    assert code in reports(caplog)[0]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "", False),
        (400, "blocked_api_access", True),
        (401, "invalid_api_key", True),
        (404, "", True),
        (404, "unknown_url", True),
        (404, "model_not_found", False),
        (413, "rate_limit_exceeded", False),
        (422, "", False),
        (429, "rate_limit_exceeded", False),
        (500, "", False),
    ],
)
def test_faults_of_the_service(status: int, code: str, *, expected: bool) -> None:
    assert is_service_fault(status, code) is expected


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (body("invalid_api_key"), "invalid_api_key"),
        (b'{"code":"flat"}', "flat"),
        (b'{"error":{"code":"with a space\\n"}}', ""),
        (b'{"error":{"code":5}}', ""),
        (b'{"error":"text"}', ""),
        (b"[]", ""),
        (b"[" * 100_000, ""),
        (b"\xff", ""),
        (b"", ""),
    ],
)
def test_the_code_in_an_error_body(content: bytes, code: str) -> None:
    assert error_code(content) == code


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_fault_is_logged_again_after_the_interval_with_its_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    faults = ServiceFaults(clock)
    for _ in range(5):
        error = faults.check(401, body("invalid_api_key"))
        assert isinstance(error, CompletionUnavailable)
        assert error.detail == "service fault 401: invalid_api_key"
    faults.check(403, body("permissions_error"))
    clock.now = LOG_INTERVAL_S
    faults.check(401, body("invalid_api_key"))

    start = "Groq rejects the requests of this service with status"
    assert reports(caplog) == [
        f"{start} {fault} ({repeated} more since the last report)"
        for fault, repeated in [
            ("401 invalid_api_key; check GROQ_API_KEY", 0),
            ("403 permissions_error; check the permissions of GROQ_API_KEY", 0),
            ("401 invalid_api_key; check GROQ_API_KEY", 4),
        ]
    ]


def test_many_different_codes_do_not_flood_the_log_or_the_memory(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_faults, "MAX_FAULTS", 3)
    faults = ServiceFaults(Clock())
    for number in range(50):
        faults.check(401, body(f"code_{number}"))

    assert len(reports(caplog)) == 4


def test_other_errors_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert ServiceFaults(Clock()).check(429, body("rate_limit_exceeded")) is None
    assert caplog.messages == []
