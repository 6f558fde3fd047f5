"""GET / leads to /docs; /docs and /openapi.json are built once, and browsers cache them."""

import asyncio
import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, DummyCookieJar

from groqchat.http import documentation
from groqchat.http.openapi import describe
from tests.conftest import Serve
from tests.support.api import assert_error

PATHS = ["/docs", "/openapi.json"]
# Writes a line for each process that runs, and needs a file to succeed.
SLOW_PROGRAM = """
import pathlib, sys, time
runs = pathlib.Path({runs!r})
with runs.open("a") as file: file.write("run\\n")
time.sleep(0.2)
if not pathlib.Path({works!r}).exists(): sys.exit("no template")
sys.stdout.write("<script>dom_id: 'x'</script>")
"""


def raw_client(api: ClientSession) -> ClientSession:
    """Return a client that does not decompress."""
    assert api._base_url is not None
    return ClientSession(
        api._base_url,
        auto_decompress=False,
        cookie_jar=DummyCookieJar(),
        skip_auto_headers=["Accept-Encoding"],
    )


@pytest.mark.parametrize("path", PATHS)
async def test_a_browser_loads_an_unchanged_document_once(api: ClientSession, path: str) -> None:
    async with api.get(path) as response:
        assert response.status == 200
        etag = response.headers["ETag"]
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["Vary"] == "Accept-Encoding"
    for condition in (etag, f'"other", {etag}', "*"):
        async with api.get(path, headers={"If-None-Match": condition}) as response:
            assert (response.status, await response.read()) == (304, b"")
            assert response.headers["ETag"] == etag
            assert response.headers["Cache-Control"] == "no-cache"
            assert response.headers["Vary"] == "Accept-Encoding"
    async with api.get(path, headers={"If-None-Match": '"other"'}) as response:
        assert response.status == 200


@pytest.mark.parametrize("path", PATHS)
async def test_a_document_is_compressed_for_clients_that_accept_it(
    api: ClientSession, path: str
) -> None:
    bodies = {}
    async with raw_client(api) as client:
        for accepted in ("gzip, deflate", "gzip;q=0, br", ""):
            headers = {"Accept-Encoding": accepted} if accepted else {}
            async with client.get(path, headers=headers) as response:
                body = await response.read()
                bodies[accepted] = body
                encoding = "gzip" if accepted == "gzip, deflate" else None
                assert response.headers.get("Content-Encoding") == encoding
                assert response.content_length == len(body)
        async with client.head(path) as response:
            assert response.content_length == len(bodies[""])
    assert bodies[""] == bodies["gzip;q=0, br"] == gzip.decompress(bodies["gzip, deflate"])
    assert len(bodies["gzip, deflate"]) < len(bodies[""]) / 3


def record_documents(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return a list that receives the models of each OpenAPI document that is built."""
    built: list[list[str]] = []

    def recorded(app: Any, settings: Any, models: list[str], **options: Any) -> dict[str, Any]:
        built.append(models)
        return describe(app, settings, models, **options)

    monkeypatch.setattr(documentation, "describe", recorded)
    return built


async def test_the_openapi_document_is_built_again_only_if_the_models_change(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await serve()
    built = record_documents(monkeypatch)
    await api.get("/api/groq-chat/models")
    etags = []
    for _ in range(5):
        async with api.get("/openapi.json") as response:
            etags.append(response.headers["ETag"])
    assert len(set(etags)) == len(built) == 1
    assert "openai/gpt-oss-20b" in built[0]


async def test_the_openapi_document_is_built_once_for_all_prefixes(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await serve(trusted_proxies="127.0.0.1")
    built = record_documents(monkeypatch)
    await api.get("/api/groq-chat/models")
    etags, documents = set(), []
    async with raw_client(api) as client:
        for number in range(20):
            headers = {"X-Forwarded-Prefix": f"/chat-{number}", "Accept-Encoding": "gzip"}
            async with client.get("/openapi.json", headers=headers) as response:
                etags.add(response.headers["ETag"])
                documents.append(json.loads(gzip.decompress(await response.read())))
    assert [document.pop("servers") for document in documents] == [
        [{"url": f"/chat-{number}"}] for number in range(20)
    ]
    assert all(document == documents[0] for document in documents)
    assert len(etags) == 20
    assert len(built) == 1


async def test_concurrent_first_requests_render_the_page_once(
    api: ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, works = tmp_path / "runs", tmp_path / "works"
    program = SLOW_PROGRAM.format(runs=str(runs), works=str(works))
    monkeypatch.setattr(documentation, "RENDER_PAGE", program)

    async def load() -> int:
        async with api.get("/docs") as response:
            if response.status == 200:
                assert "validatorUrl: null" in await response.text()
            else:
                await assert_error(response, 503, "docs_unavailable")
            return response.status

    assert await asyncio.gather(*(load() for _ in range(8))) == [503] * 8
    assert runs.read_text().count("run") == 1
    works.touch()
    assert await asyncio.gather(*(load() for _ in range(8))) == [200] * 8
    assert await load() == 200
    assert runs.read_text().count("run") == 2


async def test_a_rendering_that_hangs_is_ended(
    api: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documentation, "RENDER_PAGE", "import time; time.sleep(60)")
    monkeypatch.setattr(documentation, "RENDER_TIMEOUT_S", 0.2)
    async with api.get("/docs") as response:
        await assert_error(response, 503, "docs_unavailable")


async def test_the_page_may_run_only_its_own_scripts(api: ClientSession) -> None:
    async with api.get("/docs") as response:
        page = await response.text()
        headers = response.headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    ]
    assert policy == {
        "default-src": "'none'",
        "script-src": " ".join(hashes),
        "style-src": "'unsafe-inline'",
        "img-src": "'self' data:",
        "font-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


async def test_the_page_and_the_document_use_relative_addresses(api: ClientSession) -> None:
    async with api.get("/docs") as response:
        assert "url: new URL('openapi.json', location.href).href" in await response.text()
    async with api.get("/openapi.json") as response:
        assert json.loads(await response.read())["servers"] == [{"url": "/"}]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_root_leads_to_the_docs_page(api: ClientSession, method: str) -> None:
    async with api.request(method, "/", allow_redirects=False) as response:
        assert (response.status, await response.read()) == (302, b"")
        assert response.headers["Location"] == "docs"
        assert response.headers["Cache-Control"] == "no-store"
    async with api.request(method, "/") as response:
        assert (response.status, response.url.path) == (200, "/docs")
        assert response.content_type == "text/html"
