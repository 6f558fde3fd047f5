"""A server in place of the mock Groq server that returns a constant completion at once.

For each turn, `groqchat offline` needs half as much CPU time as the service. If several workers
share the cores of the machine with the other processes of a benchmark, this server leaves them more
CPU time.
"""

import asyncio
import os

import orjson
import uvloop

from benchmarks.turns import MESSAGE, MODEL
from groqchat.offline import groq_format
from groqchat.offline.answers import answer_to

BACKLOG = 4096


def _response(content: object) -> bytes:
    body = orjson.dumps(content)
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


MODEL_LIST = _response(groq_format.models())
COMPLETION = _response(
    groq_format.completion(answer_to([{"role": "user", "content": MESSAGE}], None), MODEL)
)


class ConstantGroq(asyncio.Protocol):
    """One connection: returns a completion for each POST, and otherwise the list of models."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop has transports of its own

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, head_end, body = self._buffer.partition(b"\r\n\r\n")
        if not head_end:
            return
        _, _, length = head.lower().partition(b"content-length: ")
        missing = int(length.partition(b"\r\n")[0] or 0) - len(body)
        if missing <= 0:
            self._buffer = b""
            self._transport.write(COMPLETION if head.startswith(b"POST") else MODEL_LIST)


async def serve() -> None:
    """Serve on PORT until the process ends."""
    loop = asyncio.get_running_loop()
    port = int(os.environ["PORT"])
    server = await loop.create_server(ConstantGroq, "127.0.0.1", port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
