"""A header that an endpoint declares must not be repeated, as a query parameter must not."""

import pytest
from aiohttp import ClientSession
from multidict import CIMultiDict
from redis.asyncio import Redis

from groqchat.app import create_app
from groqchat.http.endpoint import Endpoint
from groqchat.http.openapi import endpoints_of
from groqchat.settings import Settings
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq

DECLARED = [
    (endpoint, field.alias or name)
    for endpoint in endpoints_of(create_app(Settings()))
    if endpoint.headers_model is not None
    for name, field in endpoint.headers_model.model_fields.items()
]
OPENAI_BODY = {"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": "Hello"}]}


def test_the_headers_are_known() -> None:
    assert {(endpoint.path, header) for endpoint, header in DECLARED} == {
        (f"{BASE}/chat", "Idempotency-Key"),
        (f"{BASE}/simple-chat", "Idempotency-Key"),
        (f"{BASE}/chat/{{turn_id}}/events", "Last-Event-ID"),
        ("/openai/v1/chat/completions", "Idempotency-Key"),
        ("/openai/v1/chat/completions", "X-Session-Id"),
    }


@pytest.mark.parametrize(
    "declared", DECLARED, ids=[f"{each.name}-{header}" for each, header in DECLARED]
)
@pytest.mark.parametrize("second", ["1", "2"])
async def test_a_repeated_header_is_rejected(
    declared: tuple[Endpoint, str], second: str, api: ClientSession, redis: Redis, groq: MockGroq
) -> None:
    endpoint, header = declared
    is_openai = endpoint.path.startswith("/openai")
    response = await api.request(
        endpoint.method,
        endpoint.path.replace("{turn_id}", "660e28ea32c5fb2e9"),
        params={"message": "Hello"} if endpoint.query_model else None,
        json=(OPENAI_BODY if is_openai else {"message": "Hello"}) if endpoint.body_model else None,
        headers=CIMultiDict([(header, "1"), (header, second)]),
    )
    error = await assert_error(response, 422, "invalid_field", param=header)
    assert error["message"] == f"{header}: must not be repeated"
    assert (await redis.dbsize(), groq.requests) == (0, [])
