"""The log names the reason of each response of the OpenAI-compatible endpoint that fails."""

import asyncio

import pytest

from tests.conftest import Serve
from tests.support.raw_groq import STREAM_HEAD, RawGroq, chunked, event
from tests.test_openai_events import BODY, COMPLETIONS, SESSION

KEY = {"Idempotency-Key": "k"}
# The Content-Length is longer than the body.
CUT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"


async def break_off(writer: asyncio.StreamWriter) -> None:
    """Send the start of a stream, and close the connection."""
    writer.write(STREAM_HEAD + chunked(event("Hi")))
    writer.close()


async def break_off_plain(writer: asyncio.StreamWriter) -> None:
    """Send the start of a body, and close the connection."""
    writer.write(CUT)
    writer.close()


@pytest.mark.parametrize("headers", [{}, SESSION, KEY, SESSION | KEY], ids="+".join)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_reason_of_a_response_that_breaks_off_is_logged_once(
    serve: Serve, caplog: pytest.LogCaptureFixture, headers: dict[str, str], *, stream: bool
) -> None:
    async with RawGroq(break_off if stream else break_off_plain).serve() as groq:
        api = await serve(groq_base_url=groq.url)
        body = {**BODY, "stream": stream}
        async with api.post(COMPLETIONS, json=body, headers=headers) as response:
            assert '"completion_unavailable"' in await response.text()
    reported = [text for text in caplog.messages if "during the answer: ClientPayloadError" in text]
    assert len(reported) == 1
    assert "completion_unavailable (" in reported[0]
