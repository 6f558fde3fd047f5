"""A Groq server that sends exactly the bytes of a test, at the times that the test chooses."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import orjson

from tests.support.tcp_server import TcpServer

MODELS = orjson.dumps({"object": "list", "data": []})
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
COMPLETION = orjson.dumps(
    {
        "model": "m",
        "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"total_tokens": 3},
    }
)

# Answers a completion request; `writer` sends the bytes.
Respond: TypeAlias = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class RawGroq(TcpServer):
    """The URL of the server, its connections, and the bodies of the completion requests.

    `models` is the body of its list of models.
    """

    respond: Respond
    models: bytes = MODELS
    connections: int = 0
    bodies: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The base URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    await self._answer(reader, writer)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1]) if length else 0)
        if head.startswith(b"GET "):
            writer.write(whole(self.models))
            return
        self.bodies.append(body)
        await self.respond(writer)
        await writer.drain()


def whole(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return a complete response with a JSON body."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    head = "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""])
    return head.encode() + content


def chunked(data: bytes) -> bytes:
    """Return bytes as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str | None, finish_reason: str | None = None) -> bytes:
    """Return an event of a streamed completion."""
    delta = {} if text is None else {"content": text}
    chunk = {"model": "m", "choices": [{"delta": delta, "finish_reason": finish_reason}]}
    return b"data: %b\n\n" % orjson.dumps(chunk)


DONE = b"data: [DONE]\n\n"
