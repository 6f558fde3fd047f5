"""The service behind a reverse proxy: its prefix, and the address of the client."""

import asyncio
import json
import logging
import re
from typing import Any

import pytest
from aiohttp import ClientSession
from pydantic import ValidationError
from yarl import URL

from groqchat.settings import Settings
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.raw_http import connect
from tests.support.reverse_proxy import PREFIX, reverse_proxy

FORWARDED = {"X-Forwarded-Prefix": PREFIX, "X-Forwarded-Proto": "https"}
LOOPBACK = ("127.0.0.1",)


def url_of(api: ClientSession) -> URL:
    assert api._base_url is not None
    return api._base_url


async def open_docs(url: URL) -> dict[str, Any]:
    """Open an address as a browser does: follow redirects, load the document, call the API."""
    async with ClientSession() as browser:
        async with browser.get(url) as response:
            assert (response.status, response.url.path) == (200, f"{PREFIX}/docs")
            page = response.url
        async with browser.get(page.join(URL("openapi.json"))) as response:
            assert response.status == 200
            document: dict[str, Any] = await response.json()
        server = response.url.join(URL(document["servers"][0]["url"]))
        async with browser.get(f"{str(server).rstrip('/')}/healthz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
    return document


@pytest.mark.parametrize("strips_prefix", [True, False])
@pytest.mark.parametrize("path", ["", "/", "/docs", BASE, f"{BASE}/"])
async def test_with_a_root_path_the_docs_page_works_behind_a_prefix(
    serve: Serve, path: str, *, strips_prefix: bool
) -> None:
    api = await serve(root_path=PREFIX)
    async with reverse_proxy(url_of(api), strips_prefix=strips_prefix) as public:
        document = await open_docs(URL(f"{public}{path}"))
    assert document["servers"] == [{"url": PREFIX}]
    assert f"{BASE}/chat" in document["paths"]
    assert not [name for name in document["paths"] if name.startswith(PREFIX)]


@pytest.mark.parametrize("path", ["", "/", BASE, f"{BASE}/"])
async def test_a_trusted_proxy_supplies_the_prefix_by_a_header(serve: Serve, path: str) -> None:
    api = await serve(trusted_proxies=LOOPBACK)
    async with reverse_proxy(url_of(api), headers=FORWARDED) as public:
        document = await open_docs(URL(f"{public}{path}"))
    assert document["servers"] == [{"url": PREFIX}]


@pytest.mark.parametrize("path", ["/", BASE, f"{BASE}/"])
async def test_the_docs_page_is_found_behind_a_proxy_whose_prefix_is_unknown(
    serve: Serve, path: str
) -> None:
    api = await serve()
    async with (
        reverse_proxy(url_of(api)) as public,
        ClientSession() as browser,
        browser.get(URL(f"{public}{path}")) as response,
    ):
        assert (response.status, response.url.path) == (200, f"{PREFIX}/docs")


@pytest.mark.parametrize(
    ("trusted", "prefix"),
    [((), PREFIX), (("10.0.0.0/8",), PREFIX)]
    + [(LOOPBACK, bad) for bad in ("chat", "//evil.example", "/a b", "/a/../b", "/" + "x" * 300)],
)
async def test_a_prefix_is_ignored_if_it_is_invalid_or_not_from_a_trusted_proxy(
    serve: Serve, trusted: tuple[str, ...], prefix: str
) -> None:
    api = await serve(trusted_proxies=trusted)
    headers = {"X-Forwarded-Prefix": prefix}
    async with api.get("/", headers=headers, allow_redirects=False) as response:
        assert response.headers["Location"] == "docs"
    async with api.get("/openapi.json", headers=headers) as response:
        assert json.loads(await response.read())["servers"] == [{"url": "/"}]


async def test_every_route_accepts_requests_with_and_without_the_root_path(serve: Serve) -> None:
    api = await serve(root_path=PREFIX, cors_allowed_origins=("https://page.example",))
    for prefix in ("", PREFIX):
        url = f"{prefix}{BASE}/chat"
        async with api.post(url, json={"message": "Hello", "session_id": "s"}) as response:
            assert response.status == 200
        async with api.get(f"{prefix}/healthz", headers={"Host": "pod.internal"}) as response:
            assert response.status == 200
        preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        async with api.options(url, headers=preflight) as response:
            assert response.headers["Access-Control-Allow-Methods"] == "POST"
    async with api.get(f"{PREFIX}{PREFIX}/healthz") as response:
        await assert_error(response, 404, "not_found")


@pytest.mark.parametrize(
    ("trusted", "forwarded", "expected"),
    [
        ("", "203.0.113.7", "127.0.0.1"),
        ("10.0.0.0/8", "203.0.113.7", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.0/8, 10.0.0.0/8", "6.6.6.6, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("127.0.0.1,10.0.0.0/8", "10.9.9.9, 10.1.2.3", "10.9.9.9"),
        ("127.0.0.1", "6.6.6.6, 2001:db8::7", "2001:db8::7"),
        ("127.0.0.1,2001:db8::/32", "203.0.113.7:4711, [2001:db8::1]:80", "203.0.113.7"),
        ("127.0.0.1,10.0.0.0/8", "::ffff:203.0.113.7, ::ffff:10.0.0.1", "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7, unknown", "127.0.0.1"),
        ("127.0.0.1,10.0.0.1", "6.6.6.6, nonsense\t, 10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "fe80::1%eth0", "fe80::1"),
        ("127.0.0.1", "[fe80::1%25eth0]:80", "fe80::1"),
        ("127.0.0.1", "fe80::1%evil 200 OK, 127.0.0.1", "fe80::1"),
    ],
)
async def test_the_access_log_names_the_last_address_that_no_trusted_proxy_has(
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    trusted: str,
    forwarded: str,
    expected: str,
) -> None:
    caplog.set_level(logging.INFO, "aiohttp.access")
    api = await serve(trusted_proxies=trusted, access_log=True)
    async with api.get("/healthz", headers={"X-Forwarded-For": forwarded}) as response:
        assert response.status == 200
    lines = [record.getMessage() for record in caplog.records if record.name == "aiohttp.access"]
    # The mock Groq server writes an access log too.
    (line,) = [line for line in lines if " /healthz " in line]
    assert line.startswith(f"{expected} GET /healthz 200 ")


@pytest.mark.parametrize("header", ["Bad Header: x", "X-Bad: \x1b"])
async def test_a_malformed_request_has_one_line_in_the_access_log_and_no_traceback(
    serve: Serve, caplog: pytest.LogCaptureFixture, header: str
) -> None:
    caplog.set_level(logging.INFO, "aiohttp.access")
    api = await serve(trusted_proxies=LOOPBACK, access_log=True)
    async with connect(api) as client:
        await client.send("GET / HTTP/1.1", "Host: localhost", "X-Forwarded-For: 6.6.6.6", header)
        assert await client.error() == (400, "bad_request", "close")
    async with asyncio.timeout(5):
        while not (lines := [line for line in caplog.messages if " UNKNOWN " in line]):
            await asyncio.sleep(0.01)
    (line,) = lines
    assert re.fullmatch(r"127\.0\.0\.1 UNKNOWN / 400 \d+ bytes [\d.]+ ms", line)
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize(
    ("trusted", "origin", "status"),
    [
        (LOOPBACK, "https://chat.example.org", 200),
        (LOOPBACK, "http://chat.example.org", 403),
        (LOOPBACK, "https://evil.example", 403),
        ((), "https://chat.example.org", 403),
    ],
)
async def test_a_page_of_the_public_name_that_a_trusted_proxy_reports_is_not_another_site(
    serve: Serve, trusted: tuple[str, ...], origin: str, status: int
) -> None:
    api = await serve(trusted_proxies=trusted)
    headers = {"X-Forwarded-Host": "chat.example.org", "X-Forwarded-Proto": "https"}
    async with api.post(
        f"{BASE}/simple-chat", params={"message": "a"}, headers={"Origin": origin, **headers}
    ) as response:
        assert response.status == status


@pytest.mark.parametrize(
    ("given", "value"), [("/chat/", "/chat"), ("/", ""), ("", ""), ("/a/b-c.d", "/a/b-c.d")]
)
def test_a_root_path_has_no_slash_at_its_end(given: str, value: str) -> None:
    assert Settings(root_path=given).root_path == value


@pytest.mark.parametrize("path", ["chat", "//chat", "/a//b", "/a/../b", "/{x}", "http://x/chat"])
def test_an_invalid_root_path_is_rejected(path: str) -> None:
    with pytest.raises(ValidationError, match="is not a path prefix, for example /chat"):
        Settings(root_path=path)


@pytest.mark.parametrize("proxy", ["nginx", "10.0.0.0/33", "*", "10.0.0.1:80"])
def test_a_trusted_proxy_must_be_an_address_or_a_network(proxy: str) -> None:
    with pytest.raises(ValidationError, match="is not an IP address or network"):
        Settings(trusted_proxies=proxy)
