"""Turns a second: groqchat beside the usual way and the floor, over the same server."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from benchmarks import stage
from benchmarks.load import Result
from groqchat.storage.messages import Message, Role, encode_member, new_message_id

MODEL = "openai/gpt-oss-20b"
MESSAGE = "x" * 90
# Each session meets some ten turns in a run, so that none grows far beyond its history.
SESSIONS = 1000
TTL_S = 86400


def fill(socket: Path, history: int) -> list[str]:
    """Write sessions of `history` messages and return the requests that go on with them."""
    with redis.Redis(unix_socket_path=str(socket)) as client, client.pipeline(False) as pipe:
        client.flushall(asynchronous=False)
        for number in range(SESSIONS):
            key = f"chat:session:h{history}-{number}"
            members = {encode_member(each): each.score for each in _messages(history)}
            pipe.zadd(key, members)
            pipe.expire(key, TTL_S)
            pipe.zadd("chat:sessions", {key.rpartition(":")[2]: time.time() + TTL_S})
        pipe.execute()
    return [
        json.dumps(
            {
                "message": MESSAGE,
                "model": MODEL,
                "session_id": f"h{history}-{number}",
                "context": history,
            }
        )
        for number in range(SESSIONS)
    ]


def _messages(count: int) -> Iterator[Message]:
    for number in range(count):
        role: Role = "assistant" if number % 2 else "user"
        yield Message(id=new_message_id(), role=role, content=MESSAGE, model=MODEL)


def measure(
    socket: Path, peer: stage.Peer, *, connections: int, history: int, seconds: float
) -> Result:
    """Measure one peer once."""
    bodies = fill(socket, history)
    with stage.service(peer):
        return stage.load(connections=connections, seconds=seconds, bodies=bodies)
