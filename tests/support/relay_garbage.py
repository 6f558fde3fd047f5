"""Program that counts the garbage of streams whose readers stay idle, stall or disconnect.

Garbage of other tests would be counted too, so the count needs a process of its own:
`python -m tests.support.relay_garbage READER REDIS_URL`.
"""

import asyncio
import gc
import json
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import ClientResponse, StreamReader, web

from groqchat.http import event_stream
from groqchat.http.event_stream import _OpenStream
from groqchat.runtime.server import create_runner
from groqchat.services.openai.relay import GroqEvents
from groqchat.services.turns.turn import Turn
from tests.support.in_process import new_settings, running
from tests.support.raw_groq import STREAM_HEAD, RawGroq, chunked, event
from tests.support.streams import wait_until
from tests.test_openai_events import BODY, COMPLETIONS

READERS = 4
ROUNDS = 3
PIECE = chunked(event("x" * 16_000))
CONTENT = orjson.dumps(BODY)
REQUEST = (
    b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (COMPLETIONS.encode(), len(CONTENT), CONTENT)
)
# What a stream consists of. They refer to prompts and to buffers of megabytes.
STREAM_KINDS = (ClientResponse, GroqEvents, Turn, _OpenStream)
KINDS = (*STREAM_KINDS, StreamReader, web.BaseRequest, web.StreamResponse, asyncio.Task)


@dataclass
class Groq:
    """A Groq server whose streams never end; `open` counts them."""

    is_silent: bool
    open: int = 0
    sent: Counter[int] = field(default_factory=Counter)

    async def respond(self, writer: asyncio.StreamWriter) -> None:
        number = len(self.sent)
        self.open += 1
        self.sent[number] = 0
        try:
            writer.write(STREAM_HEAD + PIECE)
            while not self.is_silent:
                writer.write(PIECE)
                await writer.drain()
                self.sent[number] += len(PIECE)
            # A StreamWriter does not notice the end of its connection, unlike its reader.
            await vars(writer)["_reader"].read()
        finally:
            self.open -= 1

    async def wait_until_stalled(self) -> None:
        """Wait until all readers have a stream and none of the streams progresses for 0.2 s."""
        unchanged, before = 0, Counter[int]()
        async with asyncio.timeout(20):
            while self.open < READERS or unchanged < 20:
                await asyncio.sleep(0.01)
                unchanged = unchanged + 1 if before == self.sent else 0
                before = self.sent.copy()


@dataclass
class Readers:
    """Clients of the service that have requested a stream."""

    groq: Groq
    port: int
    clients: list[socket.socket] = field(default_factory=list)

    async def connect(self) -> None:
        for _ in range(READERS):
            client = socket.create_connection(("127.0.0.1", self.port))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(REQUEST)
            self.clients.append(client)
        await self.groq.wait_until_stalled()

    async def disconnect(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()

    async def wait_until_ended(self) -> None:
        async def is_ended() -> bool:
            return self.groq.open == 0

        await wait_until(is_ended)


async def disconnect(readers: Readers) -> None:
    """Disconnect while the stream is stalled or silent."""
    await readers.connect()
    await readers.disconnect()
    await readers.wait_until_ended()


async def stay(readers: Readers) -> None:
    """Stay connected until the service ends the stream."""
    await readers.connect()
    await readers.wait_until_ended()
    await readers.disconnect()


Scenario = tuple[bool, Callable[[Readers], Awaitable[None]], dict[str, Any]]
SCENARIOS: dict[str, Scenario] = {
    "stalled readers disconnect": (False, disconnect, {}),
    "stalled readers stay": (False, stay, {"stream_write_timeout_s": 0.5}),
    "waiting readers disconnect": (True, disconnect, {}),
    "waiting readers stay": (True, stay, {"groq_read_timeout_s": 0.5}),
}


@asynccontextmanager
async def readers_of(name: str, redis_url: str) -> AsyncIterator[Readers]:
    is_silent, _, changes = SCENARIOS[name]
    groq = Groq(is_silent)
    async with RawGroq(groq.respond).serve() as raw:
        runner = create_runner(new_settings(redis_url, raw.url, **changes))
        async with running(runner):
            yield Readers(groq, runner.addresses[0][1])


async def count(name: str, redis_url: str) -> dict[str, dict[str, int]]:
    """Return the objects that only the garbage collector frees, and those that nothing frees."""
    run = SCENARIOS[name][1]
    async with readers_of(name, redis_url) as readers:
        await run(readers)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        for _ in range(ROUNDS):
            await run(readers)
        # A handler ends after its stream.
        await asyncio.sleep(0.1)
        gc.collect()
        return {
            "garbage": names(each for each in gc.garbage if isinstance(each, KINDS)),
            "alive": names(each for each in alive() if isinstance(each, STREAM_KINDS)),
        }


def alive() -> list[Any]:
    """Return the objects that are not garbage."""
    garbage = set(map(id, gc.garbage))
    return [each for each in gc.get_objects() if id(each) not in garbage]


def names(objects: Iterable[object]) -> dict[str, int]:
    """Return how many objects of each class there are."""
    return dict(Counter(type(each).__name__ for each in objects))


if __name__ == "__main__":
    event_stream.INSPECTION_INTERVAL_S = 0.05
    sys.stdout.write(json.dumps(asyncio.run(count(*sys.argv[1:]))))
