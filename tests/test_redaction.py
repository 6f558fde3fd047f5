"""Texts of Groq reach clients without the API key and the organization of the service."""

import asyncio
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from groqchat.services.groq.redaction import masking, redact
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.raw_groq import LAST_CHUNK, STREAM_HEAD, RawGroq, chunked, event, whole

COMPLETIONS = "/openai/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
# The key of the service, and a key as the server quotes it.
KEYS = [
    ("gsk_s3cr3t", "gsk_s3cr3t"),
    ("gsk_s3cr3t", "gsk_0ther"),
    ("sk-or-v1-0a.b+c/d=", "sk-or-v1-0a.b+c/d="),
    ("sk-or-v1-0a.b+c/d=", r"sk-or-v1-0a.b+c\/d="),
    ('a"quoted"key', r"a\"quoted\"key"),
]
QUOTED = pytest.mark.parametrize(("key", "quoted"), KEYS)


def error_body(text: str) -> bytes:
    """Return an error of Groq with a text, which is JSON already."""
    return b'{"error":{"message":"%b","type":"t","code":"c"}}' % text.encode()


def request_for(path: str) -> dict[str, Any]:
    """Return the body of a chat request for an endpoint."""
    return {"model": "m", "messages": MESSAGES} if path == COMPLETIONS else {"message": "Hello"}


@QUOTED
@pytest.mark.parametrize("status", ["400 Bad Request", "413 X", "422 X", "429 X", "500 X"])
@pytest.mark.parametrize("path", [f"{BASE}/chat", COMPLETIONS])
async def test_an_error_of_groq_contains_no_key(
    serve: Serve, path: str, status: str, key: str, quoted: str
) -> None:
    body = error_body(f"bad key {quoted} in org_01abc!")

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(whole(body, f"x-groq-debug: {key}", status=status))

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url, groq_api_key=SecretStr(key), groq_max_retries=0)
        async with api.post(path, json=request_for(path)) as response:
            text = (await response.read()).decode()
            headers = dict(response.headers)
    is_shown = path == COMPLETIONS or not status.startswith("500")
    message = orjson.loads(text)["error"]["message"]
    assert message == ("bad key *** in org_***!" if is_shown else "The model failed to answer.")
    assert headers.get("x-groq-debug", "***") == "***"


@QUOTED
@pytest.mark.parametrize("session", [False, True])
async def test_an_error_within_a_stream_contains_no_key(
    serve: Serve, key: str, quoted: str, *, session: bool
) -> None:
    error = b"data: %b\n\n" % error_body(f"bad key {quoted}")

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event("Hi") + error) + LAST_CHUNK)

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url, groq_api_key=SecretStr(key))
        headers = {"X-Session-Id": "s"} if session else {}
        body = {**request_for(COMPLETIONS), "stream": True}
        async with api.post(COMPLETIONS, json=body, headers=headers) as response:
            events = await response.read()
    assert events.startswith(event("Hi") + b"data: " + error_body("bad key ***"))


async def test_a_key_at_the_limit_of_a_message_is_masked_completely(serve: Serve) -> None:
    key = "sk-" + "k" * 60

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(whole(error_body("x" * 470 + key), status="400 Bad Request"))

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url, groq_api_key=SecretStr(key))
        async with api.post(f"{BASE}/chat", json={"message": "Hello"}) as response:
            error = (await response.json())["error"]
    assert error["message"] == "x" * 470 + "***"


def test_a_key_is_masked_while_one_of_its_services_runs() -> None:
    text = b"the key is sk-12345"
    with masking(SecretStr("sk-12345")):
        with masking(SecretStr("sk-12345")), masking(SecretStr("sk-67890")):
            assert redact(text + b" or sk-67890") == b"the key is *** or ***"
        assert redact(text + b" or sk-67890") == b"the key is *** or sk-67890"
    assert redact(text) == text


@pytest.mark.parametrize("key", [None, SecretStr("EMPTY"), SecretStr("none")])
def test_a_placeholder_for_a_key_is_not_masked(key: SecretStr | None) -> None:
    with masking(key):
        assert redact(b"none is EMPTY") == b"none is EMPTY"
