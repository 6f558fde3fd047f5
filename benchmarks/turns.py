"""Turns a second: groqchat beside the usual way and the floor, over the same server."""

import json
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TypeAlias

import redis

from benchmarks import stage
from benchmarks.load import Result
from groqchat.storage.messages import Message, Role, encode_member, new_message_id

MODEL = "openai/gpt-oss-20b"
MESSAGE = "x" * 90
SESSIONS = 1000
TTL_S = 86400

CONNECTIONS = (64, 1, 512)
HISTORIES = (20, 2, 50)
# The pair by which services are compared, measured for longer.
MAIN = (64, 20)
MAIN_SECONDS = 2.5
CELL_SECONDS = 0.9
# The usual way takes three seconds to answer 512 requests once.
SLOW_SECONDS = 4.0

# Connections and length of history.
Cell: TypeAlias = tuple[int, int]


def fill(socket: Path, history: int) -> list[str]:
    """Write sessions of `history` messages and return the requests that go on with them."""
    with redis.Redis(unix_socket_path=str(socket)) as client, client.pipeline(False) as pipe:
        for number in range(SESSIONS):
            session_id = f"h{history}-{number}"
            key = f"chat:session:{session_id}"
            # What the last run added would make ever longer sets.
            pipe.delete(key)
            pipe.zadd(key, _members(history))
            pipe.expire(key, TTL_S)
            pipe.zadd("chat:sessions", {session_id: time.time() + TTL_S})
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


@cache
def _members(count: int) -> dict[bytes, float]:
    return {encode_member(each): each.score for each in _messages(count)}


def _messages(count: int) -> Iterator[Message]:
    for number in range(count):
        role: Role = "assistant" if number % 2 else "user"
        yield Message(id=new_message_id(), role=role, content=MESSAGE, model=MODEL)


def measure(socket: Path, peer: stage.Peer) -> Mapping[Cell, Result]:
    """Measure one peer once, with every number of connections and length of history."""
    bodies = {history: fill(socket, history) for history in HISTORIES}
    results: dict[Cell, Result] = {}
    with stage.service(peer):
        for history in HISTORIES:
            for connections in CONNECTIONS:
                results[connections, history] = stage.load(
                    connections=connections,
                    seconds=_seconds(peer, (connections, history)),
                    bodies=bodies[history],
                )
    return results


def measure_one(socket: Path, peer: stage.Peer, *, connections: int) -> Result:
    """Measure one peer once, with the usual length of history."""
    bodies = fill(socket, MAIN[1])
    with stage.service(peer):
        return stage.load(connections=connections, seconds=MAIN_SECONDS, bodies=bodies)


def _seconds(peer: stage.Peer, cell: Cell) -> float:
    if cell == MAIN:
        return MAIN_SECONDS
    return SLOW_SECONDS if peer.name == "usual" and cell[0] == max(CONNECTIONS) else CELL_SECONDS
