"""Headers that protect every response in a browser."""

import pytest
from aiohttp import ClientSession

from tests.support.api import BASE


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
