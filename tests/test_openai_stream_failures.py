"""How a stream of the OpenAI-compatible endpoint ends within a session if Groq's is not valid."""

import asyncio
from typing import Any

import groq
import pytest
from aiohttp import ClientSession
from groq import AsyncGroq

from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.events import all_events
from tests.support.raw_groq import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    RawGroq,
    Respond,
    chunked,
    event,
)
from tests.support.streams import history
from tests.test_openai_events import BODY, COMPLETIONS, SESSION, error_of

INVALID_JSON = b"data: {]\n\n"
NOT_A_CHUNK = b"data: 5\n\n"
LIST_CONTENT = b'data: {"choices":[{"delta":{"content":[1]}}]}\n\n'
FINISH = event(None, "stop")
# The events that Groq sends, and those before the error that the client receives.
FAILURES = {
    "no finish reason": ([event("Hi"), DONE], event("Hi")),
    "no finish reason, with a field": ([event("Hi"), b"id: 7\n" + DONE], event("Hi")),
    "invalid JSON": ([event("Hi"), INVALID_JSON, FINISH, DONE], event("Hi")),
    "not a chunk": ([event("Hi"), NOT_A_CHUNK, FINISH, DONE], event("Hi")),
    "text after invalid JSON": ([event("Hi"), INVALID_JSON + event("!"), DONE], event("Hi")),
    "a list as content": ([event("Hi"), LIST_CONTENT, FINISH, DONE], event("Hi")),
    "only the end": ([DONE], b""),
}


def respond_with(events: list[bytes], *, pause_s: float) -> Respond:
    """Send each event in a chunk of its own."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for each in events:
            writer.write(chunked(each))
            await writer.drain()
            await asyncio.sleep(pause_s)
        writer.write(LAST_CHUNK)

    return respond


async def stream(api: ClientSession) -> bytes:
    async with api.post(COMPLETIONS, json=BODY, headers=SESSION) as response:
        return await response.read()


async def stored_answers(api: ClientSession) -> list[tuple[str, Any]]:
    """Return text and status of each message of the session after the question."""
    async with api.get(f"{BASE}/history/s") as response:
        messages = (await response.json())["messages"]
    return [(each["content"], each.get("status")) for each in messages[1:]]


@pytest.mark.parametrize(("events", "before"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("pause_s", [0.0, 0.03], ids=["at once", "one by one"])
async def test_a_stream_that_is_not_valid_ends_with_an_error_instead_of_done(
    serve: Serve, events: list[bytes], before: bytes, pause_s: float
) -> None:
    async with RawGroq(respond_with(events, pause_s=pause_s)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        received = await stream(api)
        assert error_of(received)["code"] == "completion_unavailable"
        assert DONE not in received
        assert received.startswith(before + b"event: error\n")
        assert await stored_answers(api) == ([("Hi", "incomplete")] if before else [])


@pytest.mark.parametrize(("status", "contents"), [(400, []), (503, ["Hello"])])
async def test_only_a_stream_that_begins_with_a_rejection_removes_the_message(
    serve: Serve, status: int, contents: list[str]
) -> None:
    error = b'data: {"error":{"message":"no","status_code":%d}}\n\n' % status
    async with RawGroq(respond_with([b"event: error\n" + error], pause_s=0)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        assert error in await stream(api)
        assert [each["content"] for each in await history(api)] == contents


async def test_an_sdk_raises_an_exception_for_an_answer_that_is_stored_as_incomplete(
    serve: Serve,
) -> None:
    async with RawGroq(respond_with([event("Hi"), DONE], pause_s=0)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        url = str((await api.get("/healthz")).url.origin())
        async with AsyncGroq(api_key="any", base_url=url, max_retries=0) as client:
            chunks = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "Hello"}],
                stream=True,
                extra_headers=SESSION,
            )
            with pytest.raises(groq.APIError):
                async for _ in chunks:
                    pass


async def test_a_complete_answer_whose_stream_lacks_done_ends_with_done(serve: Serve) -> None:
    async with RawGroq(respond_with([event("Hi"), FINISH], pause_s=0)).serve() as raw:
        api = await serve(groq_base_url=raw.url)
        assert await stream(api) == event("Hi") + FINISH + DONE
        assert await stored_answers(api) == [("Hi", None)]


async def stay_open(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(event("Hi") + FINISH))
    await asyncio.Event().wait()


async def break_off(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(event("Hi") + FINISH))
    await writer.drain()
    # Not the end of the chunked body.
    writer.close()


@pytest.mark.parametrize("respond", [stay_open, break_off])
@pytest.mark.parametrize("endpoint", ["/openai", "/chat"])
async def test_an_answer_is_complete_after_its_finish_reason_however_the_stream_ends(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, respond: Respond, endpoint: str
) -> None:
    monkeypatch.setattr("groqchat.services.groq.client.END_WAIT_S", 0.2)
    async with RawGroq(respond).serve() as raw:
        api = await serve(groq_base_url=raw.url, groq_read_timeout_s=0.5)
        async with asyncio.timeout(5):
            if endpoint == "/openai":
                assert await stream(api) == event("Hi") + FINISH + DONE
            else:
                body = {"message": "Hello", "session_id": "s", "stream": True}
                async with api.post(f"{BASE}/chat", json=body) as response:
                    assert (await all_events(response))[-1].name == "done"
    assert await stored_answers(api) == [("Hi", None)]
