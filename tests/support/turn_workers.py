"""Workers that share a Redis: their turn registries, and the commands that they send."""

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from groqchat.errors import HistoryFailed, StorageError
from groqchat.services.turns.registry import TurnRegistry
from groqchat.services.turns.turn import Turn
from groqchat.storage import keys
from groqchat.storage.claims import FENCE_SCRIPT, Claim
from groqchat.storage.command_batcher import CommandBatcher
from groqchat.storage.event_log import EventLog
from groqchat.storage.keys import Command
from groqchat.storage.message_ids import MICROS_DIGITS, micros_of, new_message_id

# The key of the record of an Idempotency-Key. In these tests, it names several turns.
RECORD = keys.idempotency_key("digest")
CLAIMED = [new_message_id() for _ in range(100)]
RECORD_VALUE = json.dumps({"turn_id": ["t", *CLAIMED]})
_claimed = itertools.cycle(CLAIMED)
DONE = {"message": "Hi", "finish_reason": "stop"}
STOPPED = {"message": "", "finish_reason": "stopped"}


class RecordingBatcher(CommandBatcher):
    """A command batcher that records its commands; `error` makes every transaction fail.

    `rejected` is the id of a turn whose events Redis rejects.
    """

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, timeout_s=5)
        self.commands: list[Command] = []
        self.transactions: list[list[Command]] = []
        self.error: StorageError | None = None
        self.rejected = ""

    def transact(self, commands: Sequence[Command]) -> Any:
        if self.error is not None:
            raise self.error
        unfenced = [each for command in commands for each in without_fence(command)]
        writes = [command for command in unfenced if command[0] == "XADD"]
        if self.rejected and any(self.rejected in str(command[1]) for command in writes):
            raise HistoryFailed("rejected")
        self.commands += unfenced
        self.transactions.append(list(commands))
        return super().transact(commands)

    def named(self, *name: object) -> list[Command]:
        """Return the commands that start with these words."""
        return [command for command in self.commands if command[: len(name)] == name]


def without_fence(command: Command) -> list[Command]:
    """Return the commands in a fence, or a command that is none."""
    if command[:2] != ("EVAL", FENCE_SCRIPT):
        return [command]
    words = list(command[11:])
    commands: list[Command] = []
    while words:
        count = int(words.pop(0))
        commands.append(tuple(words[:count]))
        del words[:count]
    return commands


class Worker:
    """The turn registry of one worker."""

    def __init__(self, redis: Redis) -> None:
        self.batcher = RecordingBatcher(redis)
        self.registry = TurnRegistry(EventLog(self.batcher), lambda error: {"error": str(error)})

    def start(
        self, turn_id: str | None = None, *, claim: Claim | None = None, is_private: bool = False
    ) -> Turn:
        """Start a turn with its `start` event."""
        turn_id = claim.turn_id if claim else turn_id or new_message_id()
        turn = Turn(turn_id, "s", claim=claim, is_private=is_private)
        turn.add("start", {"turn_id": turn.id})
        self.registry.add(turn)
        return turn

    async def follow(self, turn_id: str, after: int = 0) -> bytes | None:
        """Return the events of a turn, which must end; None if there are none after a number."""
        async with asyncio.timeout(10):
            events = await self.registry.follow(turn_id, after)
            if events is None:
                return None
            return b"".join([each async for each in events])

    async def published(self, turn_id: str) -> bytes:
        """Return the events of a turn that are in Redis."""
        found = await EventLog(self.batcher).read(turn_id, 0)
        return found.events


def new_claim(turn_id: str | None = None, attempt: int = 0) -> Claim:
    """Return the claim of an attempt at a turn, with an Idempotency-Key."""
    return Claim(
        turn_id=turn_id or next(_claimed),
        token=f"token {attempt}",
        record_key=RECORD,
        attempt=attempt,
    )


async def publish(worker: Worker) -> None:
    """Publish the events that are not in Redis yet."""
    async with worker.registry.publishing():
        pass


def finish(turn: Turn, data: dict[str, Any] | None = None) -> None:
    turn.add("done", DONE if data is None else data)
    turn.end()


def old_id(age_s: float) -> str:
    """Return the id of a turn that started this long ago."""
    new = new_message_id()
    return f"{micros_of(new) - int(age_s * 1_000_000):013x}{new[MICROS_DIGITS:]}"


async def is_published(worker: Worker, turn: Turn) -> bool:
    return await worker.published(turn.id) == b"".join(turn.events)
