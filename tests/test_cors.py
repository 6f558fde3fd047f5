"""CORS: which web pages may call the API."""

import pytest
from aiohttp import ClientSession

from groqchat.http.cors import EXPOSED_HEADERS
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
