"""HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY: which proxy the connections to Groq use."""

import asyncio
import json
import ssl
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from yarl import URL

from groqchat.errors import ConfigurationError
from groqchat.services.groq.environment_proxy import proxy_of_environment
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq
from tests.support.proxy import Proxy
from tests.support.service import Service

# No server has this name: only the proxy can reach it.
GROQ = "http://groq.test"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
MODEL = "openai/gpt-oss-20b"
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy(groq: MockGroq) -> Proxy:
    """A proxy in front of the mock Groq server."""
    return Proxy(upstream_port=URL(groq.url).port or 0)


async def chat(api: ClientSession, **fields: Any) -> Any:
    return await api.post(f"{BASE}/chat", json={"message": "Hello", **fields})


async def openai(api: ClientSession, **fields: Any) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **fields}
    async with api.post("/openai/v1/chat/completions", json=body) as response:
        assert response.status == 200
        return await response.text()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_every_request_to_groq_uses_the_proxy(
    serve: Serve, groq: MockGroq, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    async with proxy.serve():
        monkeypatch.setenv(variable, f"http://{proxy.address}")
        api = await serve(groq_base_url=GROQ)
        assert (await chat(api)).status == 200
        assert "event: done" in await (await chat(api, stream=True)).text()
        assert "mock Groq server" in await openai(api)
        assert "[DONE]" in await openai(api, stream=True)
        models = await (await api.get(f"{BASE}/models")).json()

    assert len(groq.requests) == 4
    assert MODEL in {model["id"] for model in models["models"]}
    assert {line.split("/openai")[0] for line in proxy.requests} <= {
        f"POST {GROQ}",
        f"GET {GROQ}",
    }
    assert groq.headers[0]["Host"] == "groq.test"


async def test_a_loopback_address_is_never_reached_through_a_proxy(
    serve: Serve, groq: MockGroq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    api = await serve()
    assert (await chat(api)).status == 200
    assert len(groq.requests) == 1


async def test_the_credentials_of_the_proxy_are_sent_and_never_logged(
    serve: Serve, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    proxy.credentials = "user:pass word"
    async with proxy.serve():
        monkeypatch.setenv("HTTP_PROXY", f"http://user:pass%20word@{proxy.address}")
        api = await serve(groq_base_url=GROQ)
        assert (await chat(api)).status == 200

    assert f"[Groq] through the proxy at {proxy.address}" in caplog.messages
    assert "word" not in caplog.text


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_rejects_the_credentials_is_a_fault_of_the_service(
    serve: Serve,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
) -> None:
    proxy.credentials = "user:right"
    async with proxy.serve():
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:s3cret@{proxy.address}")
        api = await serve(groq_base_url=f"{scheme}://groq.test")
        await assert_error(await chat(api), 502, "completion_unavailable")
        # The other request is that for the list of models.
        assert len(proxy.requests) <= 2

    assert "status 407 (no error code); check the credentials of the proxy" in caplog.text
    assert "s3cret" not in caplog.text


async def test_an_unreachable_proxy_is_a_failure_without_its_credentials(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:s3cret@127.0.0.1:9")
    api = await serve(groq_base_url="https://groq.test", groq_max_retries=0)
    await assert_error(await chat(api), 502, "completion_unavailable")
    assert "ClientProxyConnectionError" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_proxy_that_does_not_answer_is_limited_by_the_connect_timeout(
    serve: Serve, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.hangs = True
    async with proxy.serve():
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        api = await serve(
            groq_base_url="https://groq.test", groq_connect_timeout_s=0.3, groq_max_retries=0
        )
        async with asyncio.timeout(10):
            await assert_error(await chat(api), 504, "completion_timeout")


async def test_https_uses_a_tunnel_that_the_proxy_cannot_read(
    groq: MockGroq, tmp_path: Path
) -> None:
    authority, server_side = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("groq.test").configure_cert(server_side)
    certificates = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(certificates))
    server = TestServer(groq.app(), scheme="https")
    await server.start_server(ssl=server_side)
    try:
        async with Proxy(upstream_port=server.port or 0).serve() as proxy:
            answer = await asyncio.to_thread(ask_service, tmp_path, proxy.address, certificates)
    finally:
        await server.close()

    assert "mock Groq server" in answer["message"]
    assert set(proxy.requests) == {"CONNECT groq.test:443 HTTP/1.1"}
    assert groq.headers[0]["Authorization"] == "Bearer gsk_test"


def ask_service(directory: Path, proxy: str, certificates: Path) -> Any:
    with Service(
        directory,
        REDIS_URL="memory:",
        GROQ_API_KEY="gsk_test",
        GROQ_BASE_URL="https://groq.test",
        HTTPS_PROXY=f"http://{proxy}",
        SSL_CERT_FILE=str(certificates),
    ) as service:
        request = urllib.request.Request(  # noqa: S310 - an http URL
            f"{service.url}{BASE}/chat",
            data=b'{"message": "Hello"}',
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310 - as above
            return json.load(response)


PROXY = "http://proxy.test:3128"


@pytest.mark.parametrize(
    ("variables", "base_url", "expected"),
    [
        ({}, "https://api.groq.com", None),
        ({"HTTPS_PROXY": PROXY}, "https://api.groq.com", PROXY),
        ({"HTTPS_PROXY": PROXY}, "http://api.groq.com", None),
        ({"HTTP_PROXY": PROXY}, "https://api.groq.com", None),
        ({"ALL_PROXY": PROXY}, "https://api.groq.com", PROXY),
        ({"ALL_PROXY": DEAD, "HTTPS_PROXY": PROXY}, "https://api.groq.com", PROXY),
        ({"HTTPS_PROXY": "proxy.test:3128"}, "https://api.groq.com", PROXY),
        ({"HTTPS_PROXY": ""}, "https://api.groq.com", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "groq.com"}, "https://api.groq.com", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": ".groq.com"}, "https://api.groq.com", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "a, api.groq.com:443"}, "https://api.groq.com", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "api.groq.com:8443"}, "https://api.groq.com", PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, "https://api.groq.com", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "example.org"}, "https://api.groq.com", PROXY),
        ({"HTTP_PROXY": PROXY}, "http://127.0.0.1:9", None),
        ({"HTTP_PROXY": PROXY}, "http://127.9.9.9", None),
        ({"HTTP_PROXY": PROXY}, "http://[::1]:80", None),
        ({"HTTP_PROXY": PROXY}, "http://localhost", None),
        ({"HTTP_PROXY": PROXY}, "http://groq.localhost", None),
        ({"HTTP_PROXY": PROXY}, "http://10.0.0.1", PROXY),
        ({"HTTPS_PROXY": PROXY, "ALL_PROXY": "socks5://a:1"}, "https://api.groq.com", PROXY),
    ],
)
def test_the_proxy_for_a_base_url(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], base_url: str, expected: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of_environment(base_url) == (URL(expected) if expected else None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("socks5://user:s3cret@proxy.test:1080", "HTTPS_PROXY: socks5:// is not supported"),
        ("http://user:s3cret@proxy.test:port", "HTTPS_PROXY is not a valid URL"),
        ("http://", "HTTPS_PROXY is not a valid URL"),
        ("http://us%3Aer:s3cret@proxy.test", "HTTPS_PROXY: the credentials must be Latin-1, and"),
        ("http://\u4f60:s3cret@proxy.test", "HTTPS_PROXY: the credentials must be Latin-1, and"),
    ],
)
def test_an_invalid_proxy_is_a_configuration_error_without_its_credentials(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigurationError, match=message) as failure:
        proxy_of_environment("https://api.groq.com")
    assert "s3cret" not in str(failure.value)


async def test_an_invalid_proxy_ends_the_start(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5h://proxy.test:1080")
    with pytest.raises(ConfigurationError, match="ALL_PROXY: socks5h"):
        await serve(groq_base_url="https://groq.test")
