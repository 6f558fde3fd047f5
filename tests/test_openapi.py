"""The OpenAPI document: complete, correct, and readable without internet access."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from aiohttp import ClientSession, hdrs

from groqchat.app import create_app
from groqchat.settings import Settings
from tests.conftest import Serve
from tests.support.service import Service

# Random requests for each operation, in addition to the systematic ones.
EXAMPLES = 20
# schemathesis needs 15 s to generate messages of 100,000 characters, and finds nothing more.
MAX_MESSAGE_CHARS = 1000
SCHEMATHESIS_TIMEOUT_S = 150.0


async def document_of(api: ClientSession) -> dict[str, Any]:
    response = await api.get("/openapi.json")
    assert response.status == 200
    body: dict[str, Any] = await response.json()
    return body


async def test_the_document_describes_exactly_the_routes_of_the_service(api: ClientSession) -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in create_app(Settings()).router.routes()
        if route.resource is not None and route.method != hdrs.METH_HEAD
    }
    # The redirects to the docs page.
    routes -= {("GET", "/"), ("GET", "/api/groq-chat"), ("GET", "/api/groq-chat/")}
    document = await document_of(api)
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert described == routes


async def test_every_operation_has_an_id_a_summary_a_response_and_errors(
    api: ClientSession,
) -> None:
    document = await document_of(api)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert sorted(set(names)) == sorted(names)
    for operation in operations:
        assert operation["summary"].endswith(".")
        assert operation["responses"]["200"]["content"]
        assert {"417", "422", "500"} <= set(operation["responses"])
    chat = document["paths"]["/api/groq-chat/chat"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert [parameter["name"] for parameter in chat["parameters"]] == ["Idempotency-Key"]
    schemas = document["components"]["schemas"]
    assert schemas["ChatRequest"]["examples"]
    assert schemas["ErrorResponse"]["examples"]


async def test_the_document_contains_the_configured_limits_and_models(serve: Serve) -> None:
    api = await serve(
        chat_max_message_chars=77, groq_allowed_models=("a/b",), groq_default_model="a/b"
    )
    await api.get("/api/groq-chat/models")
    document = await document_of(api)
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["message"]["maxLength"] == 77
    assert "GROQ_ALLOWED_MODELS" not in json.dumps(document)
    api = await serve()
    await api.get("/api/groq-chat/models")
    fields = (await document_of(api))["components"]["schemas"]["ChatRequest"]["properties"]
    assert "openai/gpt-oss-20b" in fields["model"]["anyOf"][0]["enum"]


async def test_the_docs_page_loads_nothing_from_other_servers(api: ClientSession) -> None:
    response = await api.get("/docs")
    page = await response.text()
    assert response.content_type == "text/html"
    assert "'openapi.json'" in page
    assert "validatorUrl: null, dom_id: '#swagger-ui'" in page
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?(?:https?:)?//""", page) == []


@pytest.fixture
def service() -> Iterator[Service]:
    """The service with the options of `make run` and shorter messages."""
    limit = str(MAX_MESSAGE_CHARS)
    with (
        tempfile.TemporaryDirectory(prefix="groqchat-") as directory,
        Service(Path(directory), "--local", CHAT_MAX_MESSAGE_CHARS=limit) as running,
    ):
        yield running


@pytest.mark.timeout(SCHEMATHESIS_TIMEOUT_S + 30)
def test_the_service_conforms_to_its_openapi_document(service: Service, tmp_path: Path) -> None:
    command = ["run", f"{service.url}/openapi.json", "--checks", "all", "--no-color"]
    bounds = ["--max-examples", str(EXAMPLES), "--request-timeout", "10", "--seed", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *command, *bounds],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SCHEMATHESIS_TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    document = requests.get(f"{service.url}/openapi.json", timeout=30).json()
    # schemathesis does not test the path of the document itself.
    paths = {path: item for path, item in document["paths"].items() if path != "/openapi.json"}
    total = sum(map(len, paths.values()))
    assert re.search(rf"Operations:\s+{total} selected / {total} total", result.stdout)
