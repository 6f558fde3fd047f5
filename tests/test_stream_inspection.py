"""The inspection of open streams: no stream delays or ends the inspection of the others."""

import asyncio
from contextlib import suppress

import pytest
from aiohttp import ClientPayloadError, web

from groqchat import sse
from groqchat.http import event_stream
from groqchat.services.turns import turn
from tests.conftest import Serve
from tests.support.api import BASE
from tests.support.groq import MockGroq
from tests.support.streams import STREAM_REQUEST

PINGS, STREAMS = 3, 20


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch, groq: MockGroq) -> None:
    """A model that is silent, and pings every 0.1 s."""
    groq.options.latency_ms = 20_000
    monkeypatch.setattr(turn, "FIRST_TEXT_WAIT_S", 0)
    monkeypatch.setattr(event_stream, "INSPECTION_INTERVAL_S", 0.1)
    monkeypatch.setattr(event_stream, "PING_INTERVAL_S", 0.1)


class FirstStreams:
    """Makes every ping of the first twenty streams fail or wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
        self._write = web.StreamResponse.write
        self._fails = fails
        self._first: list[web.StreamResponse] = []
        self.pings = 0
        own = self

        async def write(response: web.StreamResponse, data: bytes) -> None:
            await own.write(response, data)

        monkeypatch.setattr(web.StreamResponse, "write", write)

    async def write(self, response: web.StreamResponse, data: bytes) -> None:
        if response not in self._first and len(self._first) < STREAMS:
            self._first.append(response)
        if data == sse.PING and response in self._first:
            self.pings += 1
            if self._fails:
                raise RuntimeError("a defect")
            await asyncio.Event().wait()
        await self._write(response, data)


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "waits"])
async def test_a_ping_that_fails_or_waits_does_not_affect_other_streams(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    api = await serve(shutdown_grace_s=0.2)
    first = FirstStreams(monkeypatch, fails=fails)
    streams = [await api.post(f"{BASE}/chat", json=STREAM_REQUEST) for _ in range(STREAMS)]
    other = await api.post(f"{BASE}/chat", json=STREAM_REQUEST)
    async with asyncio.timeout(4):
        for _ in range(PINGS):
            await other.content.readuntil(sse.PING)
    assert first.pings > 0
    for response in (*streams, other):
        response.close()


async def test_a_client_with_unread_bytes_gets_no_pings_and_is_disconnected_in_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    api = await serve(shutdown_grace_s=0.2, stream_write_timeout_s=1)
    # As if the client had not read what is in the buffers of the connection.
    transport = "asyncio.selector_events._SelectorSocketTransport"
    monkeypatch.setattr(f"{transport}.get_write_buffer_size", lambda _: 1)
    response = await api.post(f"{BASE}/chat", json=STREAM_REQUEST)
    async with asyncio.timeout(4):
        with suppress(ClientPayloadError):
            assert sse.PING not in await response.read()
    assert "disconnecting a client that does not read its stream" in caplog.messages
