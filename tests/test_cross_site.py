"""Requests from pages of other sites: refused before they change anything."""

import asyncio
import json
import re
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq

PAGE = "https://page.example"
SIMPLE_CHAT = f"{BASE}/simple-chat"
MESSAGE = {"message": "spend", "session_id": "s"}
REFUSAL = (
    "A page of another origin must not send this request. Add the origin of the page to "
    "CORS_ALLOWED_ORIGINS to allow it."
)


async def message_count(api: ClientSession) -> int:
    async with api.get(f"{BASE}/history/s") as response:
        body: dict[str, Any] = await response.json()
    count: int = body["message_count"]
    return count


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
        {"Origin": PAGE},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
async def test_a_page_of_another_origin_cannot_chat_or_delete(
    api: ClientSession, groq: MockGroq, headers: dict[str, str]
) -> None:
    for method, path in (
        ("POST", SIMPLE_CHAT),
        ("DELETE", f"{BASE}/history/s"),
        ("POST", f"{BASE}/chat/0123456789abcdef0/stop"),
        ("POST", "/openai/v1/chat/completions"),
    ):
        params = MESSAGE if path == SIMPLE_CHAT else {}
        async with api.request(method, path, params=params, headers=headers) as response:
            error = await assert_error(response, 403, "cross_site_request")
            assert error["message"] == REFUSAL
    assert groq.requests == []
    assert await message_count(api) == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://localhost:5173", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://chat.localhost:8443", "Host": "Chat.localhost:8443"},
        {"Origin": "https://chat.localhost", "Host": "chat.localhost"},
    ],
    ids=str,
)
async def test_programs_and_pages_of_the_service_itself_can_chat(
    api: ClientSession, headers: dict[str, str]
) -> None:
    async with api.post(SIMPLE_CHAT, params=MESSAGE, headers=headers) as response:
        assert response.status == 200
    assert await message_count(api) == 2


@pytest.mark.parametrize("site", ["cross-site", "same-site", None])
async def test_a_page_of_an_allowed_origin_can_chat(serve: Serve, site: str | None) -> None:
    api = await serve(cors_allowed_origins=(PAGE,))
    headers = {"Origin": PAGE} if site is None else {"Origin": PAGE, "Sec-Fetch-Site": site}
    async with api.post(SIMPLE_CHAT, params=MESSAGE, headers=headers) as response:
        assert response.status == 200
    async with api.post(
        SIMPLE_CHAT, params=MESSAGE, headers={**headers, "Origin": "https://other.example"}
    ) as response:
        await assert_error(response, 403, "cross_site_request")


@pytest.mark.parametrize("origin", [PAGE, "null"])
async def test_with_a_wildcard_every_page_can_chat(serve: Serve, origin: str) -> None:
    api = await serve(cors_allowed_origins=("*",))
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    async with api.post(SIMPLE_CHAT, params=MESSAGE, headers=headers) as response:
        assert response.status == 200


async def test_a_link_on_another_site_can_open_a_page_of_the_service(api: ClientSession) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with api.get("/openapi.json", headers=headers) as response:
        assert response.status == 200


async def test_a_refused_request_is_not_told_to_send_its_body(api: ClientSession) -> None:
    url = api._base_url
    assert url is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"POST {BASE}/chat HTTP/1.1\r\nHost: localhost\r\nOrigin: {PAGE}\r\n"
        "Content-Length: 100\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
    error = json.loads(body)["error"]
    assert error["code"] == "cross_site_request"
    assert f"X-Request-ID: {error['request_id']}".encode() in head
    writer.close()
