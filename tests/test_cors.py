"""CORS: which web pages may call the API."""

import pytest
from aiohttp import ClientSession
from pydantic import ValidationError

from groqchat.http.cors import EXPOSED_HEADERS
from groqchat.settings import Settings
from tests.conftest import Serve
from tests.support.api import BASE

ORIGIN = "https://page.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,idempotency-key,authorization,x-stainless-os",
}


@pytest.fixture
async def api_with_cors(serve: Serve) -> ClientSession:
    """A client of the service with one allowed origin."""
    return await serve(cors_allowed_origins=(ORIGIN,))


async def test_no_origin_is_allowed_by_default(api: ClientSession) -> None:
    response = await api.get(f"{BASE}/sessions", headers={"Origin": ORIGIN})
    assert response.status == 200
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_a_preflight_request_from_an_allowed_origin_is_accepted(
    api_with_cors: ClientSession,
) -> None:
    response = await api_with_cors.options(f"{BASE}/chat", headers=PREFLIGHT)
    assert response.status == 200
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Allow-Methods"] == "POST"
    allowed = response.headers["Access-Control-Allow-Headers"].upper().split(",")
    assert set(allowed) == set(PREFLIGHT["Access-Control-Request-Headers"].upper().split(","))
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert response.headers["Vary"] == "Origin"


async def test_a_page_of_an_allowed_origin_can_read_responses_and_errors(
    api_with_cors: ClientSession,
) -> None:
    for body, status in (({"message": "Hello"}, 200), ({"message": ""}, 422)):
        response = await api_with_cors.post(f"{BASE}/chat", json=body, headers={"Origin": ORIGIN})
        assert response.status == status
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        exposed = response.headers["Access-Control-Expose-Headers"]
        assert set(exposed.split(",")) == set(EXPOSED_HEADERS)
        assert response.headers["Vary"] == "Origin"


async def test_another_origin_is_not_allowed_and_the_response_varies_by_origin(
    api_with_cors: ClientSession,
) -> None:
    other = {"Origin": "https://other.example"}
    response = await api_with_cors.get(f"{BASE}/sessions", headers=other)
    preflight = await api_with_cors.options(f"{BASE}/chat", headers={**PREFLIGHT, **other})

    assert response.status == 200
    assert "Access-Control-Allow-Origin" not in response.headers
    assert response.headers["Vary"] == "Origin"
    assert preflight.status == 403
    assert "Access-Control-Allow-Origin" not in preflight.headers


async def test_a_wildcard_origin_is_allowed_without_credentials(serve: Serve) -> None:
    api = await serve(cors_allowed_origins=("*",))
    response = await api.get(f"{BASE}/sessions", headers={"Origin": "https://any.example"})

    assert response.headers["Access-Control-Allow-Origin"] in {"*", "https://any.example"}
    assert "Access-Control-Allow-Credentials" not in response.headers


async def test_a_page_of_an_allowed_origin_can_call_history_and_session_routes(
    api_with_cors: ClientSession,
) -> None:
    for path in ("history/s", "sessions", "sessions/s"):
        response = await api_with_cors.get(f"{BASE}/{path}", headers={"Origin": ORIGIN})
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN, path
    response = await api_with_cors.delete(f"{BASE}/history/s", headers={"Origin": ORIGIN})
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


@pytest.mark.parametrize(
    ("given", "sent_by_browsers"),
    [
        ("https://Example.org", "https://example.org"),
        ("HTTPS://example.org/", "https://example.org"),
        ("http://a.b:80", "http://a.b"),
        ("https://a.b:0443/", "https://a.b"),
        ("https://a.b:80", "https://a.b:80"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[0:0:0:0:0:0:0:1]:80", "http://[::1]"),
        ("http://[2001:DB8::1]:8080", "http://[2001:db8::1]:8080"),
        ("*", "*"),
    ],
)
def test_an_allowed_origin_is_normalized_as_browsers_send_it(
    given: str, sent_by_browsers: str
) -> None:
    assert Settings(cors_allowed_origins=f"{given},").cors_allowed_origins == (sent_by_browsers,)


@pytest.mark.parametrize(
    "origin",
    [
        "example.org",
        "ftp://example.org",
        "https://example.org/chat",
        "https://example.org//",
        "https://*.example.org",
        "https://example.org:x",
        "https://example.org:65536",
        "https://[::1",
        "https://[example]",
        "https://a:b:80",
        "https://m\u00fcnchen.example",
        "https://user@example.org",
        "null",
    ],
)
def test_a_value_that_no_browser_sends_as_an_origin_is_rejected(origin: str) -> None:
    with pytest.raises(
        ValidationError,
        match=r"is not an origin: write scheme, host and port, for example https://example\.org or "
        "http://localhost:3000",
    ):
        Settings(cors_allowed_origins=origin)


async def test_a_page_is_allowed_however_the_setting_spells_its_origin(serve: Serve) -> None:
    api = await serve(cors_allowed_origins="HTTPS://Page.Example:443/")
    async with api.post(
        f"{BASE}/chat", json={"message": "Hello"}, headers={"Origin": ORIGIN}
    ) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
