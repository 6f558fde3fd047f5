"""CORS on errors: an allowed page can read them, and the log names a page that is not allowed."""

import logging

import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.raw_http import connect

ORIGIN = "https://page.example"
OTHER = "https://other.example"
LOGGER = "groqchat.http.origins"
GET = "GET / HTTP/1.1\r\nHost: localhost\r\n"
PREFLIGHT = {"Access-Control-Request-Headers": "content-type,x-a"}


@pytest.fixture
async def api_with_cors(serve: Serve) -> ClientSession:
    """A client of the service with one allowed origin."""
    return await serve(cors_allowed_origins=(ORIGIN,))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", f"{BASE}/nowhere", 404, "not_found"),
        ("GET", f"{BASE}/chat", 405, "method_not_allowed"),
        ("DELETE", f"{BASE}/sessions", 405, "method_not_allowed"),
        ("GET", f"{BASE}/sessions?limit=x", 422, "invalid_field"),
        ("GET", f"{BASE}/sessions/nobody", 404, "session_not_found"),
        ("OPTIONS", "/nowhere", 404, "not_found"),
    ],
)
async def test_an_allowed_page_can_read_every_error(
    api_with_cors: ClientSession, method: str, path: str, status: int, code: str
) -> None:
    async with api_with_cors.request(method, path, headers={"Origin": ORIGIN}) as response:
        error = await response.json()
        assert (response.status, error["error"]["code"]) == (status, code)
        assert response.headers.getall("Access-Control-Allow-Origin") == [ORIGIN]
        assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]
        assert response.headers.getall("Vary") == ["Origin"]


async def test_another_page_can_read_no_error(api_with_cors: ClientSession) -> None:
    for path in ("/nowhere", f"{BASE}/chat"):
        async with api_with_cors.get(path, headers={"Origin": OTHER}) as response:
            assert "Access-Control-Allow-Origin" not in response.headers
            assert response.headers["Vary"] == "Origin"


async def test_an_expectation_that_is_rejected_has_cors_headers(
    api_with_cors: ClientSession,
) -> None:
    headers = {"Origin": ORIGIN, "Expect": "something"}
    for path in (f"{BASE}/chat", "/nowhere"):
        async with api_with_cors.post(path, json={}, headers=headers) as response:
            await assert_error(response, 417, "expectation_failed")
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [((ORIGIN,), ORIGIN), (("*",), "*"), ((OTHER, "*"), "*"), ((ORIGIN, OTHER), None), ((), None)],
)
@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (f"{GET}Bad Header: x\r\n\r\n", 400),
        (f"GET /?{'x' * 100_000} HTTP/1.1\r\n\r\n", 414),
        (GET + "".join(f"X-{number}: {'x' * 5000}\r\n" for number in range(60)), 431),
        (f"{GET}Content-Encoding: br\r\n\r\n", 415),
        (GET, 408),
    ],
    ids=["malformed", "long line", "large headers", "undecodable", "late"],
)
async def test_a_page_can_read_the_error_for_a_request_whose_origin_is_unknown(
    serve: Serve, origins: tuple[str, ...], allowed: str | None, request_text: str, status: int
) -> None:
    api = await serve(cors_allowed_origins=origins, header_timeout_s=0.5)
    async with connect(api) as page:
        page.writer.write(request_text.encode())
        found, headers, _ = await page.response()
    assert found == status
    assert headers.get("Access-Control-Allow-Origin") == allowed
    exposed = headers.get("Access-Control-Expose-Headers", "")
    assert ("X-Request-ID" in exposed) == (allowed is not None)


@pytest.mark.parametrize(
    ("path", "method", "then"),
    [("/nowhere", "PUT", 404), (f"{BASE}/chat", "DELETE", 405), (f"{BASE}/nowhere", "POST", 404)],
)
async def test_a_preflight_succeeds_so_that_the_page_can_read_the_error_that_follows(
    api_with_cors: ClientSession, path: str, method: str, then: int
) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": method, **PREFLIGHT}
    async with api_with_cors.options(path, headers=headers) as response:
        assert response.status == 200
        assert {
            name: value
            for name, value in response.headers.items()
            if name.startswith("Access-Control-")
        } == {
            "Access-Control-Allow-Origin": ORIGIN,
            "Access-Control-Allow-Methods": method,
            "Access-Control-Allow-Headers": "content-type,x-a",
            "Access-Control-Max-Age": "7200",
        }
        assert "X-Request-ID" in response.headers
    async with api_with_cors.request(method, path, headers={"Origin": ORIGIN}) as response:
        assert response.status == then
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


async def test_a_preflight_of_another_page_is_rejected(api_with_cors: ClientSession) -> None:
    headers = {"Origin": OTHER, "Access-Control-Request-Method": "POST", **PREFLIGHT}
    for path, status, code in (("/nowhere", 404, "not_found"), (f"{BASE}/chat", 403, "forbidden")):
        async with api_with_cors.options(path, headers=headers) as response:
            await assert_error(response, status, code)
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_each_origin_that_is_not_allowed_is_logged_once_with_the_setting(
    api: ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    preflight = {"Access-Control-Request-Method": "POST"}
    for origin in (ORIGIN, OTHER, "null", "https://\x85" + "x" * 1000):
        for _ in range(2):
            await api.get(f"{BASE}/sessions", headers={"Origin": origin})
            await api.options(f"{BASE}/chat", headers={"Origin": origin, **preflight})
            await api.post(f"{BASE}/chat", headers={"Origin": origin})
    reason = "CORS_ALLOWED_ORIGINS does not contain it"
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert lines == [
        f"blocked a page of the origin '{ORIGIN}': {reason}",
        f"blocked a page of the origin '{OTHER}': {reason}",
        "blocked a page of the origin 'null': only CORS_ALLOWED_ORIGINS=* allows it",
        f"blocked a page of the origin 'https://\\x85{'x' * 291}': {reason}",
    ]


async def test_an_allowed_page_and_a_page_of_the_service_are_not_logged(
    api_with_cors: ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    for headers in (
        {"Origin": ORIGIN},
        {"Origin": "http://localhost:1", "Host": "localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        await api_with_cors.get(f"{BASE}/sessions", headers=headers)
    assert [record for record in caplog.records if record.name == LOGGER] == []


async def test_with_a_wildcard_any_page_can_read_errors_but_a_preflight_needs_an_origin(
    serve: Serve,
) -> None:
    api = await serve(cors_allowed_origins=("*",))
    async with api.get("/nowhere", headers={"Origin": OTHER}) as response:
        await assert_error(response, 404, "not_found")
        assert response.headers["Access-Control-Allow-Origin"] == OTHER
    headers = {"Access-Control-Request-Method": "POST"}
    async with api.options(f"{BASE}/chat", headers=headers) as response:
        await assert_error(response, 403, "forbidden")
