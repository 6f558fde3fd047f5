"""Idempotency-Key on the OpenAI-compatible endpoint: one completion, whose response is repeated."""

import asyncio
from typing import Any

import openai
import pytest
from aiohttp import ClientSession

from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq
from tests.support.raw_groq import DONE, LAST_CHUNK, STREAM_HEAD, RawGroq, chunked, event
from tests.support.streams import history, wait_until
from tests.test_openai_events import COMPLETIONS, SESSION

MODEL = "llama-3.3-70b-versatile"
HELLO = "Hello \u00e9\u20ac"
KEY = {"Idempotency-Key": "8e03978e-40d5"}
KINDS = pytest.mark.parametrize(
    ("stream", "session"), [(False, False), (False, True), (True, False), (True, True)]
)


def body(text: str = HELLO, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


async def send(
    api: ClientSession, *, session: bool = False, headers: dict[str, str] = KEY, **fields: Any
) -> tuple[int, str, bytes]:
    """Return status, content type and body of the response."""
    every = {**headers, **(SESSION if session else {})}
    async with api.post(COMPLETIONS, json=body(**fields), headers=every) as response:
        return response.status, response.content_type, await response.read()


async def succeeds(api: ClientSession, **options: Any) -> bool:
    """Return whether a request succeeds; after a failure, its claim is released in a moment."""
    status, _, content = await send(api, **options)
    return status == 200 and b"event: error\n" not in content


@pytest.mark.parametrize("session", [False, True])
async def test_the_endpoints_of_turns_do_not_know_a_keyed_completion(
    serve: Serve, groq: MockGroq, redis: Any, *, session: bool
) -> None:
    workers = [await serve(), await serve()]
    release = groq.hold()
    running = asyncio.create_task(send(workers[0], session=session))

    async def is_published() -> bool:
        return bool(await redis.keys("chat:turn:*"))

    await wait_until(is_published)
    (name,) = await redis.keys("chat:turn:*")
    turn_id = name.decode().rpartition(":")[2]
    for worker in workers:
        for each, status in ((turn_id, 422), (turn_id[:17], 404)):
            async with worker.get(f"{BASE}/chat/{each}/events") as response:
                assert response.status == status
            async with worker.post(f"{BASE}/chat/{each}/stop") as response:
                assert response.status == status
    release.set()
    assert (await running)[0] == 200


@KINDS
async def test_a_repeated_request_returns_the_first_response(
    serve: Serve, groq: MockGroq, *, stream: bool, session: bool
) -> None:
    workers = [await serve(), await serve()]
    first = await send(workers[0], stream=stream, session=session)
    assert first[0] == 200
    for api in workers:
        assert await send(api, stream=stream, session=session) == first
    assert len(groq.requests) == 1
    stored = [message["role"] for message in await history(workers[0])]
    assert stored == (["user", "assistant"] if session else [])
    if stream:
        assert first[1] == "text/event-stream"
        assert first[2].endswith(b"data: [DONE]\n\n")


@KINDS
async def test_concurrent_duplicates_run_one_completion(
    serve: Serve, groq: MockGroq, *, stream: bool, session: bool
) -> None:
    groq.options.latency_ms = 300
    workers = [await serve(), await serve()]
    responses = await asyncio.gather(
        *(send(api, stream=stream, session=session) for api in workers * 5)
    )
    assert {response[0] for response in responses} == {200}
    assert len({response[2] for response in responses}) == 1
    assert len(groq.requests) == 1
    assert len(await history(workers[0])) == (2 if session else 0)


async def test_another_request_with_the_key_is_rejected(api: ClientSession) -> None:
    assert (await send(api))[0] == 200
    for other, headers in (
        (body("Other"), {}),
        (body(temperature=1.0), {}),
        (body(), SESSION),
    ):
        response = await api.post(COMPLETIONS, json=other, headers={**KEY, **headers})
        await assert_error(response, 409, "idempotency_key_reused", param="Idempotency-Key")
    # The order of the fields does not matter.
    same = dict(reversed(body().items()))
    assert (await api.post(COMPLETIONS, json=same, headers=KEY)).status == 200
    # Keys of /chat are independent.
    chat = await api.post("/api/groq-chat/chat", json={"message": "Hello"}, headers=KEY)
    assert chat.status == 200


@KINDS
@pytest.mark.parametrize("failure", ["500", "400", "401", "drop"])
async def test_a_failed_request_is_run_again(
    serve: Serve, groq: MockGroq, failure: Any, *, stream: bool, session: bool
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail = failure
    status, content_type, error = await send(api, stream=stream, session=session)
    assert status == {"500": 500, "400": 400}.get(failure, 502)
    assert content_type == "application/json"
    assert b'{"error":{' in error
    groq.options.fail = None
    await wait_until(lambda: succeeds(api, stream=stream, session=session))
    # A request on the connection of an earlier one is sent again if the connection breaks.
    assert len(groq.requests) == (3 if failure == "drop" else 2)
    stored = [message["role"] for message in await history(api)]
    assert stored == (["user", "assistant"] if session else [])


@pytest.mark.parametrize("session", [False, True])
async def test_a_stream_that_breaks_off_is_run_again(
    serve: Serve, groq: MockGroq, *, session: bool
) -> None:
    api = await serve(groq_max_retries=0)
    groq.options.fail, groq.options.fail_after_chunks = "drop", 3
    status, _, stream = await send(api, stream=True, session=session)
    assert status == 200
    assert stream.count(b"event: error\n") == 1
    groq.options.fail = None
    await wait_until(lambda: succeeds(api, stream=True, session=session))
    assert len(groq.requests) == 2


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize(
    "failure",
    [
        event("Hi") + b'data: {"error":{"message":"x"}}\n\n' + DONE,
        b'data: {"error":{"message":"x","code":"rate_limit_exceeded"}}\n\n',
        event("Hi") + b'event: error\ndata: {"error":{"message":"x"}}\n\n',
        event("Hi") + DONE,
        DONE,
    ],
)
async def test_a_stream_without_a_complete_answer_is_run_again(
    serve: Serve, failure: bytes, *, session: bool
) -> None:
    streams = [failure, event("Hi", "stop") + DONE]

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(streams[len(raw.bodies) - 1]) + LAST_CHUNK)

    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        first = await send(api, stream=True, session=session)
        second = first

        async def is_complete() -> bool:
            nonlocal second
            second = await send(api, stream=True, session=session)
            return second != first

        await wait_until(is_complete)
        assert second[2] == event("Hi", "stop") + DONE
        assert len(raw.bodies) == 2
        assert await send(api, stream=True, session=session) == second


@pytest.mark.parametrize("session", [False, True])
async def test_a_client_that_disconnects_receives_the_answer_with_its_next_request(
    api: ClientSession, groq: MockGroq, *, session: bool
) -> None:
    groq.options.chunk_ms = 20
    headers = {**KEY, **(SESSION if session else {})}
    response = await api.post(COMPLETIONS, json=body(stream=True), headers=headers)
    await response.content.readuntil(b"\n\n")
    response.close()
    status, _, stream = await send(api, stream=True, session=session)
    assert (status, stream.endswith(b"data: [DONE]\n\n")) == (200, True)
    assert len(groq.requests) == 1


@KINDS
async def test_a_completion_and_its_request_use_one_slot(
    serve: Serve, groq: MockGroq, *, stream: bool, session: bool
) -> None:
    api = await serve(max_concurrent_turns=2)
    held = asyncio.Event()

    async def wait() -> None:
        if len(groq.requests) == 1:
            await held.wait()

    groq.before_response = wait
    first = asyncio.create_task(send(api, stream=stream, session=session))

    async def is_running() -> bool:
        return len(groq.requests) == 1

    await wait_until(is_running)
    # The second slot is free for other requests, also after the response has begun.
    headers = {"Idempotency-Key": "other"}
    assert (await send(api, headers=headers, stream=stream, session=session))[0] == 200
    held.set()
    assert (await first)[0] == 200


@pytest.mark.parametrize("session", [False, True])
async def test_a_stream_uses_one_slot_while_it_is_sent(
    serve: Serve, groq: MockGroq, *, session: bool
) -> None:
    api = await serve(max_concurrent_turns=2)
    groq.options.chunk_ms = 40
    headers = {**KEY, **(SESSION if session else {})}
    response = await api.post(COMPLETIONS, json=body(stream=True), headers=headers)
    await response.content.readuntil(b"\n\n")
    assert (await send(api, headers={"Idempotency-Key": "other"}))[0] == 200
    assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_a_retried_transcript_is_stored_once(api: ClientSession, groq: MockGroq) -> None:
    url = f"{(await api.get('/healthz')).url.origin()}/openai/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        answers = [
            await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Hello"}],
                extra_headers={**KEY, **SESSION},
            )
            for _ in range(10)
        ]
    assert len({answer.id for answer in answers}) == 1
    assert len(groq.requests) == 1
    assert len(await history(api)) == 2


async def test_every_key_in_redis_has_a_ttl(api: ClientSession, redis: Any) -> None:
    await send(api, stream=True, session=True)
    await send(api, headers={"Idempotency-Key": "k"})

    async def have_ttl() -> bool:
        names = [name for name in await redis.keys("*") if name != b"chat:sessions"]
        return bool(names) and all([0 < await redis.ttl(name) <= 86400 for name in names])

    await wait_until(have_ttl)
