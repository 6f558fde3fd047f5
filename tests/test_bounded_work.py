"""Requests of one client that would take the memory or the event loop from all others."""

import asyncio
import gzip
import json
import logging
import random
import zlib
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import Any, cast

import pytest
from aiohttp import ClientSession

from groqchat import sse
from groqchat.http import event_stream
from groqchat.http.endpoint import MAX_VALUES
from groqchat.offline import answers
from groqchat.runtime import paced_connection
from groqchat.runtime.parse_errors import MAX_PATH_CHARS
from groqchat.services.openai.request_body import MAX_FIELDS, MAX_MESSAGES
from groqchat.services.turns.remote_turns import RemoteTurns
from groqchat.services.turns.running_bodies import SMALL_BODY_BYTES, VALUE_BYTES, memory_of
from groqchat.storage.event_log import EventLog, EventSlice
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.events import all_events
from tests.support.groq import MockGroq
from tests.support.openai_messages import answer, result
from tests.support.raw_http import connect, post
from tests.support.streams import wait_until
from tests.test_openai_idempotency import body, send
from tests.test_openai_rejections import users
from tests.test_unread_responses import unread


def port_of(api: ClientSession) -> int:
    port = api._base_url.port if api._base_url else None
    assert port is not None
    return port


MIB = 1024 * 1024
CHAT = f"{BASE}/chat"
COMPLETIONS = "/openai/v1/chat/completions"
GZIP = {"Content-Encoding": "gzip", "Content-Type": "application/json"}


@pytest.mark.parametrize("path", ["/" * MAX_PATH_CHARS, f"{BASE}/{'/a' * MAX_PATH_CHARS}"])
async def test_a_long_path_is_a_414(api: ClientSession, path: str) -> None:
    async with connect(api) as one:
        await one.send(f"GET {path}/ HTTP/1.1", "Host: localhost")
        status, headers, content = await one.response()
        assert (status, json.loads(content)["error"]["code"]) == (414, "uri_too_long")
        assert json.loads(content)["error"]["request_id"] == headers["X-Request-ID"]
        await one.send("GET /healthz HTTP/1.1", "Host: localhost")
        assert (await one.response())[0] == 200


async def test_a_long_query_of_a_known_path_is_accepted(api: ClientSession) -> None:
    path = f"{BASE}/simple-chat?message={'a' * 10_000}"
    async with api.post(path) as response:
        assert response.status == 200


async def test_a_large_compressed_body_is_accepted(api: ClientSession, groq: MockGroq) -> None:
    spaces = "".join(random.choices(" \n\t", k=3 * MIB))  # noqa: S311 - not used for security
    content = gzip.compress(f'{{"message": "Hello"{spaces}}}'.encode())
    assert len(content) < MIB
    async with api.post(CHAT, data=content, headers=GZIP) as response:
        assert response.status == 200
    assert groq.prompts[-1] == [("user", "Hello")]


@pytest.mark.parametrize(("count", "status"), [(MAX_MESSAGES, 200), (MAX_MESSAGES + 1, 422)])
async def test_a_request_within_a_session_has_a_maximum_of_messages(
    api: ClientSession, count: int, status: int
) -> None:
    messages = users(*["a"] * count)
    assert (await send(api, session=True, messages=messages, headers={}))[0] == status


@pytest.mark.parametrize(("count", "status"), [(MAX_FIELDS, 200), (MAX_FIELDS + 1, 422)])
async def test_a_request_within_a_session_has_a_maximum_of_fields(
    api: ClientSession, count: int, status: int
) -> None:
    fields: Any = {f"field-{number}": 1 for number in range(count - 2)}
    assert (await send(api, session=True, headers={}, **fields))[0] == status


@pytest.mark.parametrize(("count", "status"), [(MAX_VALUES, 200), (MAX_VALUES + 1, 413)])
async def test_a_body_has_a_maximum_of_values(api: ClientSession, count: int, status: int) -> None:
    # The other fields have seven marks of a value, a list two, and the first value no comma.
    values: list[Any] = [[]] * 30_000 + [0] * (count - 60_006)
    content = json.dumps({**body(), "x": values})
    assert sum(content.count(mark) for mark in ",{[") == count
    headers = {"Content-Type": "application/json"}
    async with api.post(COMPLETIONS, data=content, headers=headers) as response:
        assert response.status == status
        if status == 413:
            error = await assert_error(response, 413, "body_too_large")
            assert error["message"] == "The body contains more than 100000 values."


async def test_many_compressed_bodies_are_rejected_and_others_are_not(
    api: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paced_connection, "DECOMPRESSED_BYTES_PER_S", 1)
    # The first one needs all of it, together with what the limit was at the start.
    content = gzip.compress(json.dumps({"message": "a" * 90_000}).encode())
    statuses = []
    for _ in range(100):
        async with api.post(CHAT, data=content, headers=GZIP) as response:
            statuses.append(response.status)
    assert statuses[0] == 200
    assert statuses[-1] == 503
    assert set(statuses) == {200, 503}
    error = await assert_error(await api.post(CHAT, data=content, headers=GZIP), 503, "overloaded")
    assert "uncompressed" in error["message"]
    async with api.post(CHAT, json={"message": "a" * 90_000}) as response:
        assert response.status == 200


async def test_the_rests_of_compressed_bodies_are_limited_too(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paced_connection, "DECOMPRESSED_BYTES_PER_S", 1)
    api = await serve()
    compressor = zlib.compressobj()
    begin = compressor.compress(b'{"message": "') + compressor.flush(zlib.Z_SYNC_FLUSH)
    rest = compressor.compress(b"a" * 2 * MIB + b'"}') + compressor.flush()
    head = post(CHAT, begin + rest, "Content-Encoding: deflate").removesuffix(rest)
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connect(api)) for _ in range(12)]
        for one in opened:
            one.writer.write(head)
        for one in opened[:-1]:
            one.writer.write(rest)
        statuses = [(await one.response())[0] for one in opened[:-1]]
    # The message is too long; the last ones are not parsed any more.
    assert statuses[0] == 422
    assert statuses[-1] == 503
    assert statuses.count(422) < 6


async def test_the_values_of_a_body_need_memory(serve: Serve, groq: MockGroq) -> None:
    api = await serve(max_request_buffer_bytes=MIB)
    release = groq.hold()
    messages = users(*["a"] * 1000)
    running = asyncio.create_task(send(api, messages=messages, headers={}))

    async def is_asked() -> bool:
        return len(groq.requests) == 1

    await wait_until(is_asked)
    assert (await send(api, messages=messages, headers={}))[0] == 503
    release.set()
    assert (await running)[0] == 200


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}])
@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_the_large_bodies_of_running_requests_are_limited(
    serve: Serve, groq: MockGroq, url: str, headers: dict[str, str]
) -> None:
    api = await serve(max_request_buffer_bytes=MIB)
    content = {"message": "a"} if url == CHAT else body("a")
    # Spaces are a part of the body, but not of the message.
    large = json.dumps(content).encode().rjust(400_000)
    release = groq.hold()

    def sending(number: int, data: bytes) -> asyncio.Task[Any]:
        own = {name: f"{value}-{number}" for name, value in headers.items()}
        head = {"Content-Type": "application/json", **own}
        return asyncio.ensure_future(api.post(url, data=data, headers=head))

    running = [sending(number, large) for number in range(2)]

    async def are_asked() -> bool:
        return len(groq.requests) == 2

    await wait_until(are_asked)
    response = await sending(2, large)
    await assert_error(response, 503, "overloaded")
    assert response.headers["Retry-After"] == "1"
    small = sending(3, large[-SMALL_BODY_BYTES // 2 :])
    release.set()
    assert [(await each).status for each in (*running, small)] == [200, 200, 200]
    assert (await sending(4, large)).status == 200


async def test_the_earlier_messages_of_running_requests_are_limited(
    serve: Serve, groq: MockGroq
) -> None:
    api = await serve(max_request_buffer_bytes=MIB)
    calls = {**answer(None, "1", arguments=json.dumps("a" * 400_000))}
    messages = [*users("a"), calls, result("1")]
    assert (await send(api, session=True, messages=messages, headers={}))[0] == 200
    release = groq.hold()
    request = partial(send, api, session=True, messages=[result("1")], headers={})
    running = [asyncio.create_task(request()) for _ in range(2)]

    async def are_asked() -> bool:
        return len(groq.requests) == 3

    await wait_until(are_asked)
    assert (await request())[0] == 503
    release.set()
    assert [(await each)[0] for each in running] == [200, 200]
    assert (await request())[0] == 200


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("a", 1),
        ("é", 10),
        ("\\u00e9", 10),
        ("😀", 20),
        ("\\ud83d\\ude00", 20),
        ("\\uD83D\\uDE00", 20),
    ],
)
def test_wide_characters_need_more_memory(text: str, factor: int) -> None:
    content = f'"{text}{"a" * SMALL_BODY_BYTES}"'.encode()
    assert memory_of(content, 1) == VALUE_BYTES + factor * len(content)
    assert memory_of(b"1", 1) == 0


async def test_streams_that_are_not_read_are_limited_together(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api = await serve()
    # More than the buffers of the kernel contain.
    answer = " ".join(["x" * 9_999] * 40)
    monkeypatch.setattr(answers, "_sentence", lambda *_: answer)
    message = {"message": "Hello", "session_id": "s", "stream": True}
    headers = {"Idempotency-Key": "key"}

    async def read() -> dict[str, Any]:
        async with api.post(CHAT, json=message, headers=headers) as response:
            data: dict[str, Any] = (await all_events(response))[-1].data
            return data

    first = await read()
    assert first["message"] == answer
    monkeypatch.setattr(event_stream, "MAX_UNSENT_BYTES", 300_000)
    request = post(CHAT, json.dumps(message).encode(), "Idempotency-Key: key")
    caplog.set_level(logging.INFO)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(unread(port_of(api), request))

        async def is_cut_off() -> bool:
            return any("cut off a stream" in record.message for record in caplog.records)

        await wait_until(is_cut_off)
        assert await read() == first


async def test_followers_share_the_events_of_a_large_turn() -> None:
    events = sse.encode_event(b'"%b"' % (b"a" * 100_000), name="done", number=1)

    class Log:
        async def read(self, turn_id: str, after: int) -> EventSlice:
            assert (turn_id, after) == ("0" * 17, 0)
            # Redis replies with new bytes each time.
            return EventSlice(events=bytes(bytearray(events)), exists=True, is_over=True)

    turns = RemoteTurns(cast("EventLog", Log()))
    found = []
    following = []
    for _ in range(2):
        followed = await turns.follow("0" * 17, 0, waits_for_text=False, waits_for_start=False)
        assert followed is not None
        following.append(followed)
        found.append(await anext(followed))
    assert found[0] == events
    assert found[0] is found[1]
    for each in following:
        assert [part async for part in each] == []
