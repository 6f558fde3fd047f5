"""Which pages may call the API."""

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
async def shared(serve: Serve) -> ClientSession:
    """The service with one origin allowed."""
    return await serve(cors_allowed_origins=(ORIGIN,))


async def test_no_origin_is_allowed_by_default(api: ClientSession) -> None:
    response = await api.get(f"{BASE}/sessions", headers={"Origin": ORIGIN})
    assert response.status == 200
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_a_preflight_is_answered_for_an_allowed_origin(shared: ClientSession) -> None:
    response = await shared.options(f"{BASE}/chat", headers=PREFLIGHT)
    assert response.status == 200
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Allow-Methods"] == "POST"
    allowed = response.headers["Access-Control-Allow-Headers"].upper().split(",")
    assert set(allowed) == set(PREFLIGHT["Access-Control-Request-Headers"].upper().split(","))
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert response.headers["Vary"] == "Origin"


async def test_a_page_of_an_allowed_origin_reads_answers_and_errors(
    shared: ClientSession,
) -> None:
    for body, status in (({"message": "Hello"}, 200), ({"message": ""}, 422)):
        response = await shared.post(f"{BASE}/chat", json=body, headers={"Origin": ORIGIN})
        assert response.status == status
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        exposed = response.headers["Access-Control-Expose-Headers"]
        assert set(exposed.split(",")) == set(EXPOSED_HEADERS)
        assert response.headers["Vary"] == "Origin"


async def test_another_origin_gets_no_permission_and_caches_are_told(
    shared: ClientSession,
) -> None:
    other = {"Origin": "https://other.example"}
    response = await shared.get(f"{BASE}/sessions", headers=other)
    preflight = await shared.options(f"{BASE}/chat", headers={**PREFLIGHT, **other})

    assert response.status == 200
    assert "Access-Control-Allow-Origin" not in response.headers
    assert response.headers["Vary"] == "Origin"
    assert preflight.status == 403
    assert "Access-Control-Allow-Origin" not in preflight.headers


async def test_any_origin_is_never_allowed_with_credentials(serve: Serve) -> None:
    api = await serve(cors_allowed_origins=("*",))
    response = await api.get(f"{BASE}/sessions", headers={"Origin": "https://any.example"})

    assert response.headers["Access-Control-Allow-Origin"] in {"*", "https://any.example"}
    assert "Access-Control-Allow-Credentials" not in response.headers


async def test_every_route_may_be_called_from_an_allowed_page(shared: ClientSession) -> None:
    for path in ("history/s", "sessions", "sessions/s"):
        response = await shared.get(f"{BASE}/{path}", headers={"Origin": ORIGIN})
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN, path
    response = await shared.delete(f"{BASE}/history/s", headers={"Origin": ORIGIN})
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
