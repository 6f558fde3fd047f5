"""Groq's place taken by a server that answers at once and always the same.

What `groqchat offline` takes for an answer is half of what the service takes for a turn. Where
several workers share the machine's cores with all that a benchmark needs, this leaves them theirs.
"""

import asyncio
import os

import orjson
import uvloop

from benchmarks.turns import MESSAGE, MODEL
from groqchat.offline import wire
from groqchat.offline.answers import answer_to

BACKLOG = 4096


def _response(content: object) -> bytes:
    body = orjson.dumps(content)
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


MODELS = _response(wire.models())
COMPLETION = _response(
    wire.completion(answer_to([{"role": "user", "content": MESSAGE}], None), MODEL)
)


class Instant(asyncio.Protocol):
    """One connection: a completion for each POST, the list of models for all else."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's are none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        _, _, length = head.lower().partition(b"content-length: ")
        missing = int(length.partition(b"\r\n")[0] or 0) - len(rest)
        if missing <= 0:
            self._buffer = b""
            self._transport.write(COMPLETION if head.startswith(b"POST") else MODELS)


async def serve() -> None:
    """Serve on PORT until the process is ended."""
    loop = asyncio.get_running_loop()
    port = int(os.environ["PORT"])
    server = await loop.create_server(Instant, "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
