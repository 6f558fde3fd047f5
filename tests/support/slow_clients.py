"""Clients that do not read the stream that they asked for."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aiohttp import ClientResponse, ClientSession

from groqchat.offline import answers
from groqchat.services.turns import turn_completion
from tests.support.streams import history

REQUEST = (
    b"POST /api/groq-chat/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 55\r\n"
    b"Content-Type: application/json\r\n\r\n"
    b'{"message": "Hello", "session_id": "s", "stream": true}'
)


@contextmanager
def never_reading_client(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A client that starts a stream of 15 MB, more than all buffers contain, and reads nothing."""
    monkeypatch.setattr(turn_completion, "MAX_ANSWER_CHARS", 20_000_000)
    monkeypatch.setattr(answers, "_sentence", lambda *_: " ".join(["x" * 9_999] * 1500))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(REQUEST)
        yield client


def api_port(response: ClientResponse) -> int:
    """Return the port of the service that sent a response."""
    assert response.url.port is not None
    return response.url.port


async def has_messages(api: ClientSession, count: int) -> bool:
    """Return whether the session `s` has this number of messages."""
    return len(await history(api)) == count
