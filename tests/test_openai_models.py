"""GET /openai/v1/models and /openai/v1/models/{model}, and the paths that do not exist there."""

import asyncio
from typing import Any

import openai
import pytest
from aiohttp import ClientSession
from yarl import URL

from tests.conftest import Serve
from tests.support.api import assert_error
from tests.support.raw_groq import RawGroq

MODELS = "/openai/v1/models"
MODEL = "openai/gpt-oss-20b"
ENDPOINTS = (
    "POST /openai/v1/chat/completions",
    "GET /openai/v1/models",
    "GET /openai/v1/models/{model}",
)


@pytest.mark.parametrize("name", ["openai/gpt-oss-20b", "openai%2Fgpt-oss-20b"])
async def test_a_model_is_returned_as_groq_lists_it(api: ClientSession, name: str) -> None:
    listed = (await (await api.get(MODELS)).json())["data"]
    response = await api.get(URL(f"{MODELS}/{name}", encoded=True))
    assert response.status == 200
    model = await response.json()
    assert model == next(each for each in listed if each["id"] == MODEL)
    assert model["object"] == "model"


async def test_openais_sdk_retrieves_a_model(api: ClientSession) -> None:
    url = f"{(await api.get('/healthz')).url.origin()}/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        model = await client.models.retrieve(MODEL)
        assert (model.id, model.object, model.owned_by) == (MODEL, "model", "OpenAI")
        with pytest.raises(openai.NotFoundError) as raised:
            await client.models.retrieve("openai/unknown")
    assert raised.value.code == "model_not_found"


@pytest.mark.parametrize("name", ["unknown", "openai", "openai/", "a/b/c", "%00", "%E2%82%AC", "."])
async def test_an_unknown_model_is_a_404(api: ClientSession, name: str) -> None:
    response = await api.get(URL(f"{MODELS}/{name}x", encoded=True))
    await assert_error(response, 404, "model_not_found", param="model")


async def test_a_model_that_is_not_allowed_is_a_404(serve: Serve) -> None:
    other = "llama-3.3-70b-versatile"
    api = await serve(groq_allowed_models=(other,), groq_default_model=other)
    assert (await api.get(f"{MODELS}/{other}")).status == 200
    await assert_error(await api.get(f"{MODELS}/{MODEL}"), 404, "model_not_found", param="model")


@pytest.mark.parametrize("path", [MODELS, f"{MODELS}/{MODEL}"])
async def test_without_a_list_the_models_are_unavailable(serve: Serve, path: str) -> None:
    async def never(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with RawGroq(never).serve() as raw:
        url = raw.url
    api = await serve(groq_base_url=url, groq_max_retries=0)
    await assert_error(await api.get(path), 502, "completion_unavailable")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/openai/v1/embeddings"),
        ("POST", "/openai/v1/responses"),
        ("POST", "/openai/v1/chat/completions/"),
        ("GET", "/openai/v1/models/"),
        ("GET", "/openai/v1"),
        ("POST", "/openai/chat/completions"),
        ("POST", "/v1/chat/completions"),
    ],
)
async def test_an_unknown_path_lists_the_endpoints(serve: Serve, method: str, path: str) -> None:
    api = await serve(cors_allowed_origins=("https://example.org",))
    origin = {"Origin": "https://example.org"}
    response = await api.request(method, path, headers=origin)
    error = await assert_error(response, 404, "not_found")
    assert all(endpoint in error["message"] for endpoint in ENDPOINTS)
    assert response.headers["Access-Control-Allow-Origin"] == "https://example.org"


async def test_other_unknown_paths_do_not_list_them(api: ClientSession) -> None:
    error = await assert_error(await api.get("/api/unknown"), 404, "not_found")
    assert error["message"] == "This path does not exist."


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/openai/v1/chat/completions", {"POST"}),
        ("POST", MODELS, {"GET", "HEAD"}),
        ("DELETE", f"{MODELS}/{MODEL}", {"GET", "HEAD"}),
    ],
)
async def test_another_method_is_a_405(
    api: ClientSession, method: str, path: str, allowed: Any
) -> None:
    response = await api.request(method, path)
    await assert_error(response, 405, "method_not_allowed")
    assert set(response.headers["Allow"].split(",")) == allowed
