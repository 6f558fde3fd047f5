"""The connection of a finished stream: reused, if the rest of the body arrives within bounds."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import ClientSession

from groqchat.services.groq import stream_end
from groqchat.services.groq.stream_end import StreamEnds
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.garbage import no_gc
from tests.support.raw_groq import DONE, LAST_CHUNK, STREAM_HEAD, RawGroq, chunked, event

ANSWER = STREAM_HEAD + chunked(event("Hi")) + chunked(event(None, "stop")) + chunked(DONE)
Write = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def stream(api: ClientSession) -> str:
    async with api.post(f"{BASE}/chat", json={"message": "Hello", "stream": True}) as response:
        return await response.text()


def answer_and(write_end: Write) -> Write:
    """Answer a request, and send the end of the body afterwards."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER)
        await writer.drain()
        await write_end(writer)

    return respond


async def after_20_ms(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.02)
    writer.write(LAST_CHUNK)


async def never(_: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def after_too_much(writer: asyncio.StreamWriter) -> None:
    for _ in range(100):
        writer.write(chunked(b": filler\n" * 1000))
        await writer.drain()
        await asyncio.sleep(0.001)
    writer.write(LAST_CHUNK)


async def with_invalid_bytes(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.02)
    writer.write(b"zz\r\n")


async def by_closing(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.02)
    writer.close()


async def wait_for_drains() -> None:
    async with asyncio.timeout(5):
        while any("_drain" in repr(task) for task in asyncio.all_tasks()):
            await asyncio.sleep(0.01)


async def test_a_late_end_of_the_body_does_not_cost_a_connection(serve: Serve) -> None:
    async with RawGroq(answer_and(after_20_ms)).serve() as groq:
        api = await serve(groq_base_url=groq.url)
        for _ in range(10):
            assert "event: done" in await stream(api)
            await wait_for_drains()

    assert len(groq.bodies) == 10
    # The list of models was requested at the start.
    assert groq.connections <= 2


@pytest.mark.parametrize(
    "write_end",
    [never, after_too_much, with_invalid_bytes, by_closing],
    ids=lambda end: end.__name__,
)
async def test_a_body_that_does_not_end_well_is_not_waited_for(
    serve: Serve, write_end: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_end, "MAX_DRAIN_S", 0.3)
    async with RawGroq(answer_and(write_end)).serve() as groq:
        api = await serve(groq_base_url=groq.url, max_concurrent_turns=1)
        started = time.monotonic()
        for _ in range(3):
            assert "event: done" in await stream(api)
        assert time.monotonic() - started < 3
        await wait_for_drains()
        assert groq.connections >= 3


async def test_the_client_does_not_wait_for_the_end_of_the_body(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_end, "MAX_DRAIN_S", 60.0)
    async with RawGroq(answer_and(never)).serve() as groq:
        api = await serve(groq_base_url=groq.url)
        async with asyncio.timeout(5):
            assert "event: done" in await stream(api)


async def test_the_number_of_ends_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_end, "MAX_DRAINING", 2)
    async with RawGroq(answer_and(never)).serve() as groq, ClientSession() as session:
        ends = StreamEnds()
        responses = [await session.post(f"{groq.url}/") for _ in range(4)]
        for response in responses:
            ends.release(response)
        assert [response.closed for response in responses] == [False, False, True, True]
        await ends.aclose()
        assert all(response.closed for response in responses)


async def test_a_closed_response_needs_no_task() -> None:
    async with RawGroq(answer_and(after_20_ms)).serve() as groq, ClientSession() as session:
        response = await session.post(f"{groq.url}/")
        await response.read()
        before = asyncio.all_tasks()
        StreamEnds().release(response)
        assert asyncio.all_tasks() == before


async def test_an_end_leaves_no_reference_cycle() -> None:
    async with RawGroq(answer_and(after_20_ms)).serve() as groq, ClientSession() as session:
        ends = StreamEnds()

        async def read_and_release() -> None:
            response = await session.post(f"{groq.url}/")
            while DONE not in await response.content.readany():
                pass
            ends.release(response)
            await wait_for_drains()

        await read_and_release()
        with no_gc():
            for _ in range(10):
                await read_and_release()
            found = [each for each in gc.get_objects() if isinstance(each, aiohttp.ClientResponse)]
    assert len(found) <= 1


async def test_an_answer_without_done_is_complete_after_a_short_wait(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groqchat.services.groq.client.END_WAIT_S", 0.2)

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunked(event("Hi")) + chunked(event(None, "stop")))
        await asyncio.Event().wait()

    async with RawGroq(respond).serve() as groq:
        api = await serve(groq_base_url=groq.url)
        async with asyncio.timeout(5):
            text = await stream(api)

    assert "event: done" in text
    assert '"finish_reason":"stop"' in text
