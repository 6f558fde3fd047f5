"""Turns per second: groqchat, the floor and the naive service with one Redis server."""

import json
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TypeAlias

import redis

from benchmarks import harness
from benchmarks.load import LoadResult
from groqchat.storage.message_ids import new_message_id
from groqchat.storage.messages import Message, Role, encode_member

MODEL = "openai/gpt-oss-20b"
MESSAGE = "x" * 90
SESSIONS = 1000
TTL_S = 86400

CONNECTIONS = (64, 1, 512)
# The number of messages that each session contains, and that the model receives as context.
HISTORIES = (20, 2, 50)
# The load by which the services are compared: 64 connections, 20 messages. It runs longer.
MAIN = (64, 20)
MAIN_SECONDS = 2.5
OTHER_SECONDS = 0.9
# The naive service needs three seconds for the first 512 responses.
SLOW_SECONDS = 4.0

# The number of connections, and the number of messages in each session.
Load: TypeAlias = tuple[int, int]


def write_sessions(socket: Path, history: int) -> list[str]:
    """Write sessions of `history` messages and return the chat requests that continue them."""
    with redis.Redis(unix_socket_path=str(socket)) as client, client.pipeline(False) as pipe:
        for number in range(SESSIONS):
            session_id = f"h{history}-{number}"
            key = f"chat:session:{session_id}"
            # Every run starts without the messages of the last run.
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
    return {encode_member(message): message.score for message in _messages(count)}


def _messages(count: int) -> Iterator[Message]:
    for number in range(count):
        role: Role = "assistant" if number % 2 else "user"
        yield Message(id=new_message_id(), role=role, content=MESSAGE, model=MODEL)


def measure_all_loads(socket: Path, peer: harness.Peer) -> Mapping[Load, LoadResult]:
    """Measure a peer once with every number of connections and messages."""
    bodies = {history: write_sessions(socket, history) for history in HISTORIES}
    results: dict[Load, LoadResult] = {}
    with harness.service(peer):
        for history in HISTORIES:
            for connections in CONNECTIONS:
                results[connections, history] = harness.run_load_generator(
                    connections=connections,
                    seconds=_seconds(peer, (connections, history)),
                    bodies=bodies[history],
                )
    return results


def measure_main_history(socket: Path, peer: harness.Peer, *, connections: int) -> LoadResult:
    """Measure a peer once with 20 messages per session."""
    bodies = write_sessions(socket, MAIN[1])
    with harness.service(peer):
        return harness.run_load_generator(
            connections=connections, seconds=MAIN_SECONDS, bodies=bodies
        )


def _seconds(peer: harness.Peer, load: Load) -> float:
    if load == MAIN:
        return MAIN_SECONDS
    is_slow = peer.name == harness.NAIVE and load[0] == max(CONNECTIONS)
    return SLOW_SECONDS if is_slow else OTHER_SECONDS
