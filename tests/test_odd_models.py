"""A model that Groq describes in an unexpected way does not make the other models unavailable."""

import asyncio
import json
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_groq import RawGroq

GOOD = {
    "id": "good",
    "object": "model",
    "created": 1,
    "owned_by": "Groq",
    "active": True,
    "context_window": 131072,
    "max_completion_tokens": 65536,
}
FIELDS = ("id", "owned_by", "active", "context_window", "max_completion_tokens")
BEYOND_64_BITS = 10**20
OPENAI_MODELS = "/openai/v1/models"


async def serve_list(serve: Serve, *models: bytes) -> ClientSession:
    """Return a client of a service that has received a list of models from Groq."""

    async def never(writer: asyncio.StreamWriter) -> None:
        writer.close()

    content = b'{"object":"list","data":[%b]}' % b",".join(models)
    async with RawGroq(never, models=content).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        assert (await api.get(OPENAI_MODELS)).status == 200
    return api


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("owned_by", 7),
        ("owned_by", ["Groq"]),
        ("active", "perhaps"),
        ("active", {}),
        ("context_window", "8k"),
        ("context_window", 8192.5),
        ("context_window", -BEYOND_64_BITS),
        ("max_completion_tokens", BEYOND_64_BITS),
        ("max_completion_tokens", [1]),
    ],
)
async def test_a_field_of_an_unexpected_type_is_null(
    serve: Serve, field: str, value: object
) -> None:
    odd = f'{{"id":"odd","{field}":'.encode() + json.dumps(value).encode() + b"}"
    api = await serve_list(serve, odd, orjson.dumps(GOOD))
    response = await api.get(f"{BASE}/models")
    assert response.status == 200
    assert (await response.json())["models"] == [
        {**dict.fromkeys(FIELDS), "id": "odd"},
        {name: GOOD[name] for name in FIELDS},
    ]


async def test_the_list_and_the_model_in_openais_format_are_equal(serve: Serve) -> None:
    odd = {"id": "odd", "owned_by": 7, "context_window": "8k", "extra": [None]}
    api = await serve_list(serve, b'{"id":"bare"}', orjson.dumps(odd), orjson.dumps(GOOD))
    expected: list[dict[str, Any]] = [
        {"id": "bare", "object": "model", "created": 0, "owned_by": ""},
        {"object": "model", "created": 0, **odd},
        GOOD,
    ]
    listed = await (await api.get(OPENAI_MODELS)).json()
    assert listed == {"object": "list", "data": expected}
    single = [await (await api.get(f"{OPENAI_MODELS}/{each['id']}")).json() for each in expected]
    assert single == expected


async def test_a_model_that_cannot_be_written_as_json_is_left_out(serve: Serve) -> None:
    depth = 300
    deep = b'{"id":"deep","extra":%b%b}' % (b"[" * depth, b"]" * depth)
    api = await serve_list(serve, deep, orjson.dumps(GOOD))
    for path, name in ((OPENAI_MODELS, "data"), (f"{BASE}/models", "models")):
        response = await api.get(path)
        assert response.status == 200
        assert [model["id"] for model in (await response.json())[name]] == ["good"]
    assert (await api.get(f"{OPENAI_MODELS}/deep")).status == 404
