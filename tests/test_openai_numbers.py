"""The body that Groq receives: valid JSON with the numbers and fields of the request."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession

from tests.conftest import Serve
from tests.support.api import assert_error
from tests.support.raw_groq import COMPLETION, RawGroq, whole
from tests.support.streams import history
from tests.test_openai_events import COMPLETIONS, SESSION

JSON_HEADERS = {"Content-Type": "application/json"}
FIELDS = (
    b' {\n"model" : "m" ,"top_p":1e999, "seed":123456789012345678901234567890,'
    b'"n":1.00000000000000000001,"x":-0.0,"e":1E+2,\t"d":1,"d":2,"text":"NaN \\u00e9 \xc3\xa9 \\"",'
    b'"o":{"messages":[1]},"l":[],"messages":%b,"z":[ 1 , 2 ]}\r\n'
)
MESSAGES = b'[ {"role":"user", "content":"Hello", "f":0.10000000000000000001 , "i":%d} ]' % (
    2**70 + 1
)


@pytest.fixture
async def raw() -> AsyncIterator[RawGroq]:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(whole(COMPLETION))

    async with RawGroq(respond).serve() as raw:
        yield raw


@pytest.fixture
async def client(serve: Serve, raw: RawGroq) -> ClientSession:
    return await serve(groq_base_url=raw.url)


async def post(client: ClientSession, body: bytes, headers: dict[str, str]) -> ClientResponse:
    return await client.post(COMPLETIONS, data=body, headers={**JSON_HEADERS, **headers})


def reject(name: str) -> Any:
    raise ValueError(name)


async def test_within_a_session_only_the_messages_are_replaced(
    client: ClientSession, raw: RawGroq
) -> None:
    assert (await post(client, FIELDS % MESSAGES, SESSION)).status == 200
    second = b'[{"role":"system","content":"Be brief."},{"role":"user","content":"And?","f":1e-7}]'
    assert (await post(client, FIELDS % second, SESSION)).status == 200

    message = MESSAGES.strip(b"[ ]")
    assert raw.bodies[0] == FIELDS % (b"[%b]" % message)
    before, _, after = FIELDS.partition(b"%b")
    assert raw.bodies[1].startswith(before + b'[{"role":"system","content":"Be brief."},')
    assert raw.bodies[1].endswith(b',{"role":"user","content":"And?","f":1e-7}]' + after)
    forwarded = json.loads(raw.bodies[1], parse_constant=reject)["messages"]
    assert [each["content"] for each in forwarded] == ["Be brief.", "Hello", "Hi", "And?"]
    assert forwarded[1]["i"] == 2**70 + 1
    stored = [each.get("extra") for each in await history(client)]
    assert stored == [{"f": 0.1, "i": 2**70 + 1}, None, {"f": 1e-7}, None]


async def test_without_a_session_the_body_is_forwarded_byte_for_byte(
    client: ClientSession, raw: RawGroq
) -> None:
    body = FIELDS % MESSAGES.replace(b"0.1", b"1e999")
    assert (await post(client, body, {})).status == 200
    assert raw.bodies == [body]


@pytest.mark.parametrize("headers", [{}, SESSION])
@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
async def test_constants_that_are_not_json_are_rejected(
    client: ClientSession, raw: RawGroq, constant: bytes, headers: dict[str, str]
) -> None:
    for body in (
        b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"top_p":%b}' % constant,
        b'{"model":"m","messages":[{"role":"user","content":"Hi","x":[%b]}]}' % constant,
    ):
        await assert_error(await post(client, body, headers), 400, "malformed_json")
    assert raw.bodies == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"Hi","x":1e999}]}',
        b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"messages":[]}',
        b'{"model":"m","messages":-1e999}',
    ],
)
async def test_messages_that_cannot_be_stored_are_rejected(
    client: ClientSession, raw: RawGroq, body: bytes
) -> None:
    await assert_error(await post(client, body, SESSION), 422, "invalid_field", param="messages")
    assert (raw.bodies, await history(client)) == ([], [])


@pytest.mark.parametrize("body", [b"{}", b' { "messages" : [ ] } ', b'{"messages":{}}', b'{"a":1}'])
async def test_a_body_without_messages_is_rejected(client: ClientSession, body: bytes) -> None:
    await assert_error(await post(client, body, SESSION), 422, "invalid_field", param="messages")
