"""Failed requests to Groq leave no reference cycles, which would keep prompts in memory."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence

import pytest
from pydantic import SecretStr

from groqchat.errors import CompletionError, CompletionUnavailable
from groqchat.services.groq.client import GroqClient, open_groq_client
from groqchat.services.groq.completions import Prompt, StreamParser
from groqchat.settings import Settings
from tests.support.garbage import no_gc
from tests.support.raw_groq import STREAM_HEAD, RawGroq, Respond, chunked, event, whole
from tests.support.turn_service import events_of, open_service, request, run_to_end

REPEATS = 10
# A closed connection of asyncio is a cycle of a few small objects on each side.
MAX_OBJECTS = 16
PROMPT = Prompt(model="m", messages=[{"role": "user", "content": "x"}])


async def complete(client: GroqClient) -> None:
    await client.complete(PROMPT)


async def stream(client: GroqClient) -> None:
    parser = StreamParser("m")
    async for _ in client.stream(PROMPT, parser):
        pass


async def forward(client: GroqClient) -> None:
    response = await client.forward(b"{}", model="m")
    response.close()


async def fail(writer: asyncio.StreamWriter) -> None:
    writer.write(whole(b"{}", status="500 Internal Server Error"))


async def limit(writer: asyncio.StreamWriter) -> None:
    writer.write(whole(b"{}", "Retry-After: 30", status="429 Too Many Requests"))


async def reject_key(writer: asyncio.StreamWriter) -> None:
    writer.write(whole(b"{}", status="401 Unauthorized"))


async def drop(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def hang(_: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def pause(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(event("Hi")))
    await asyncio.Event().wait()


async def drop_later(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(event("Hi")))
    await writer.drain()
    await asyncio.sleep(0.005)
    writer.transport.abort()


async def send_garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunked(b"data: {]\n\n"))


Send = Callable[[GroqClient], Awaitable[None]]


@pytest.mark.parametrize(
    ("send", "respond"),
    [
        *((send, respond) for send in (complete, stream) for respond in (fail, limit, reject_key)),
        *((send, respond) for send in (complete, stream, forward) for respond in (drop, hang)),
        *((stream, respond) for respond in (pause, drop_later, send_garbage)),
    ],
    ids=lambda function: function.__name__,
)
async def test_a_failed_request_leaves_no_cycle(send: Send, respond: Respond) -> None:
    async with RawGroq(respond).serve() as groq:
        settings = Settings(
            groq_api_key=SecretStr("k"),
            groq_base_url=groq.url,
            groq_max_retries=0,
            groq_timeout_s=0.05,
            groq_read_timeout_s=0.03,
        )
        async with open_groq_client(settings, groq.url) as client:

            async def run() -> None:
                with pytest.raises(CompletionError):
                    await send(client)

            for _ in range(2):
                await run()
            with no_gc():
                for _ in range(REPEATS):
                    await run()
                # The server needs a moment to close its side.
                await asyncio.sleep(0.05)
                found = gc.collect()
    assert found / REPEATS < MAX_OBJECTS


@pytest.mark.parametrize("texts", [("Hel", "lo"), ()])
async def test_a_failed_stream_keeps_no_frames_alive(
    texts: Sequence[str],
) -> None:
    """The frames in a traceback refer to the turn, with all events of the answer."""
    async with open_service() as service:
        service.groq.texts = texts
        service.groq.error = CompletionUnavailable("down")
        turn = await run_to_end(service, request(stream=True))

    assert events_of(turn)[-1][0] == "error"
    assert (turn.error is None) is (not texts)
    assert turn.error is None or turn.error.__traceback__ is None
