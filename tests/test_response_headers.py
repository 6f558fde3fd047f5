"""Headers that protect every response in a browser."""

import json

import pytest
from aiohttp import ClientSession

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
