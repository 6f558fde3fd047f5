"""Which failures of Groq are retried, for `/chat` and for the OpenAI-compatible endpoint."""

import asyncio

import pytest

from tests.conftest import Serve
from tests.support.raw_groq import COMPLETION, STREAM_HEAD, RawGroq, chunked, event, whole
from tests.test_groq_deadlines import send

KINDS = ["chat", "chat stream", "openai", "openai stream"]
BEGUN = {"plain": whole(COMPLETION)[:-5], "stream": STREAM_HEAD + chunked(event("Hi"))}
# The number of requests with one retry, in the order of KINDS.
REQUESTS = {
    "status": (2, 2, 1, 1),
    "no response": (2, 2, 2, 2),
    "cut": (2, 1, 1, 1),
    "pause": (2, 1, 1, 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failure", REQUESTS)
async def test_a_failure_is_retried_as_the_settings_page_states(
    serve: Serve, kind: str, failure: str
) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        if failure == "status":
            writer.write(whole(b'{"error":{"message":"m"}}', status="500 Error"))
            return
        if failure != "no response":
            writer.write(BEGUN["stream" if "stream" in kind else "plain"])
        if failure == "pause":
            await asyncio.Event().wait()
        writer.close()

    async with RawGroq(respond).serve() as groq:
        api = await serve(groq_base_url=groq.url, groq_max_retries=1, groq_read_timeout_s=0.1)
        await send(api, kind)
        assert len(groq.bodies) == REQUESTS[failure][KINDS.index(kind)]
