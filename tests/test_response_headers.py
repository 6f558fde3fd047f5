"""Headers that protect every response in a browser."""

import json

import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_http import connect


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{BASE}/history/s", 200),
        ("/docs", 200),
        ("/", 302),
        ("/nowhere", 404),
        (f"{BASE}/chat", 405),
        (f"{BASE}/sessions?limit=x", 422),
    ],
)
async def test_a_browser_does_not_guess_another_type_for_a_response(
    api: ClientSession, path: str, status: int
) -> None:
    async with api.get(path, allow_redirects=False) as response:
        assert response.status == status
        assert response.headers.getall("X-Content-Type-Options") == ["nosniff"]


GET = (f"GET {BASE}/sessions HTTP/1.1", "Host: localhost")


@pytest.mark.parametrize(
    ("lines", "connection", "has_body"),
    [
        (GET, None, True),
        ((*GET, "Connection: close"), "close", True),
        ((f"GET {BASE}/sessions HTTP/1.0", "Connection: keep-alive"), "keep-alive", True),
        ((f"HEAD {BASE}/sessions HTTP/1.1", "Host: localhost"), None, False),
    ],
    ids=["usual", "close", "HTTP/1.0", "HEAD"],
)
async def test_a_json_response_has_the_same_headers_for_every_request(
    api: ClientSession, lines: tuple[str, ...], connection: str | None, *, has_body: bool
) -> None:
    async with connect(api) as one:
        await one.send(*lines)
        head = await one.reader.readuntil(b"\r\n\r\n")
        status, *fields = head.decode().strip().split("\r\n")
        headers = dict(field.split(": ", 1) for field in fields)
        body = await one.reader.readexactly(int(headers["Content-Length"]) if has_body else 0)
    assert status.endswith(" 200 OK")
    assert headers.pop("Connection", None) == connection
    assert set(headers) == {
        "Content-Type",
        "Content-Length",
        "Date",
        "Server",
        "X-Content-Type-Options",
        "X-Request-ID",
    }
    assert headers["Content-Type"] == "application/json"
    assert not has_body or json.loads(body)["sessions"] == []


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("GET / HTTP/1.1", "Host: localhost", "Bad Header: x"), 400),
        ((*GET, "Content-Encoding: br"), 415),
        ((f"GET /?{'x' * 100_000} HTTP/1.1", "Host: localhost"), 414),
        (("GET / HTTP/1.1", *(f"X-{number}: {'x' * 5000}" for number in range(60))), 431),
        (("POST /nowhere HTTP/1.1", "Host: localhost", "Expect: something"), 417),
    ],
    ids=["malformed", "undecodable", "long line", "large headers", "expectation"],
)
async def test_a_browser_does_not_guess_another_type_for_an_error_outside_of_the_application(
    api: ClientSession, lines: tuple[str, ...], status: int
) -> None:
    async with connect(api) as one:
        await one.send(*lines)
        found, headers, _ = await one.response()
    assert (found, headers["X-Content-Type-Options"]) == (status, "nosniff")


async def test_a_browser_does_not_guess_another_type_for_the_error_of_a_full_service(
    serve: Serve,
) -> None:
    api = await serve(max_connections_per_address=1)
    async with connect(api), connect(api) as second:
        found, headers, _ = await second.response()
    assert (found, headers["X-Content-Type-Options"]) == (503, "nosniff")
