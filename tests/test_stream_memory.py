"""Turns are freed when they end, without the garbage collector, however their clients behave."""

import socket
import weakref
from collections.abc import Iterator

import pytest
from aiohttp import ClientSession

from groqchat.http import event_stream
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.turn import Turn
from tests.conftest import Serve
from tests.support.events import all_events, read_events
from tests.support.garbage import no_gc
from tests.support.groq import MockGroq
from tests.support.slow_clients import api_port, never_reading_client
from tests.support.streams import start_stream, wait_until


class Turns:
    """Weak references to the turns of the service."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.references: list[weakref.ref[Turn]] = []
        add = TurnRegistry.add

        def record(registry: TurnRegistry, turn: Turn) -> None:
            self.references.append(weakref.ref(turn))
            add(registry, turn)

        monkeypatch.setattr(TurnRegistry, "add", record)

    async def are_freed(self) -> bool:
        return bool(self.references) and all(reference() is None for reference in self.references)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    """The turns of the service, while the garbage collector does not run."""
    monkeypatch.setattr(event_stream, "INSPECTION_INTERVAL_S", 0.05)
    with no_gc():
        yield Turns(monkeypatch)


async def test_a_finished_turn_is_freed(api: ClientSession, turns: Turns) -> None:
    response, _ = await start_stream(api)
    await all_events(response)
    await wait_until(turns.are_freed)


@pytest.mark.parametrize("on_disconnect", ["continue", "cancel"])
async def test_a_turn_whose_client_disconnects_is_freed(
    api: ClientSession, groq: MockGroq, turns: Turns, on_disconnect: str
) -> None:
    groq.options.chunk_ms, groq.options.chunks = 10, 60
    response, _ = await start_stream(api, on_disconnect=on_disconnect)
    await anext(read_events(response))
    response.close()
    await wait_until(turns.are_freed)


async def test_a_turn_that_fails_in_its_stream_is_freed(
    api: ClientSession, groq: MockGroq, turns: Turns
) -> None:
    groq.options.fail, groq.options.fail_after_chunks = "drop", 3
    response, _ = await start_stream(api)
    assert (await all_events(response))[-1].name == "error"
    await wait_until(turns.are_freed)


async def test_a_turn_whose_client_does_not_read_is_freed_after_the_write_timeout(
    serve: Serve, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await serve(stream_write_timeout_s=0.5)
    with never_reading_client(api_port(await api.get("/healthz")), monkeypatch) as client:
        assert isinstance(client, socket.socket)

        async def has_started() -> bool:
            return bool(turns.references)

        await wait_until(has_started)
        await wait_until(turns.are_freed)
