"""One turn: its events and followers, how it is stopped, how long Redis retains it."""

import asyncio
from typing import Any, Literal

import pytest

from groqchat.errors import CompletionTimeout, ShuttingDown, TurnLost
from groqchat.services.turns.turn import EventName, StopReason, Turn
from groqchat.sse import MAX_WRITE_BYTES, encode_event
from groqchat.storage.claims import Claim
from tests.support.turn_workers import new_claim

TURN_ID = "660dffe0b39799a87"


def new_turn(**kind: Any) -> Turn:
    return Turn(TURN_ID, "s", **kind)


def add_events(turn: Turn, *sizes: int) -> None:
    """Add events of these sizes in bytes."""
    for size in sizes:
        frame = encode_event(b"", name="delta", number=len(turn.events) + 1)
        turn.add("delta", b"x" * (size - len(frame)))


async def read_to_end(turn: Turn, after: int = 0) -> list[bytes]:
    return [events async for events in turn.follow(after)]


async def next_tick() -> None:
    """Run every callback and task step that is ready now."""
    await asyncio.sleep(0)


def test_a_new_turn_is_unshared_public_and_running() -> None:
    turn = new_turn()
    assert (turn.id, turn.session_id, list(turn.events)) == (TURN_ID, "s", [])
    assert (turn.claim is not None, turn.is_private, turn.is_over, turn.has_outcome) == (False,) * 4
    assert (turn.error, turn.stop_reason) == (None, None)


def test_events_are_encoded_and_numbered_from_1() -> None:
    turn = new_turn()
    turn.add("start", b'{"turn_id":"x"}')
    turn.add("delta", {"text": "H\u00e9"})
    assert list(turn.events) == [
        b'id: 1\nevent: start\ndata: {"turn_id":"x"}\n\n',
        'id: 2\nevent: delta\ndata: {"text":"H\u00e9"}\n\n'.encode(),
    ]


@pytest.mark.parametrize(
    ("name", "has_outcome"), [("start", False), ("delta", False), ("done", True), ("error", True)]
)
def test_only_done_and_error_are_outcomes(name: EventName, has_outcome: bool) -> None:  # noqa: FBT001 - a parameter of the test
    turn = new_turn()
    turn.add(name, {})
    assert turn.has_outcome is has_outcome


async def test_encoded_events_of_another_server_are_added_unchanged() -> None:
    turn = new_turn()
    follower = asyncio.create_task(read_to_end(turn))
    await next_tick()
    turn.add_raw(b"data: 1\n\n")
    await next_tick()
    turn.add_raw(b"")
    turn.add_raw(b"data: 2\n\n")
    turn.end()
    assert list(turn.events) == [b"data: 1\n\n", b"data: 2\n\n"]
    assert await follower == list(turn.events)


async def test_a_follower_receives_earlier_events_at_once_and_later_ones_as_they_arrive() -> None:
    turn = new_turn()
    add_events(turn, 40, 50)
    received: list[bytes] = []

    async def follow() -> None:
        async for events in turn.follow():
            received.append(events)  # noqa: PERF401 - the test reads the list while it grows

    follower = asyncio.create_task(follow())
    await next_tick()
    assert received == [b"".join(turn.events)]
    add_events(turn, 60)
    await next_tick()
    assert received[1:] == [turn.events[2]]
    assert not follower.done()
    turn.end()
    await follower
    assert received[2:] == []


@pytest.mark.parametrize("is_private", [False, True])
async def test_events_are_pushed_to_a_follower_that_waits_and_takes_them(
    *, is_private: bool
) -> None:
    turn = new_turn(is_private=is_private)
    pushed: list[bytes] = []
    takes = True

    def push(event: bytes) -> bool:
        if takes:
            pushed.append(event)
        return takes

    follower = turn.follow()
    follower.push = push
    add_events(turn, 40)
    first = turn.events.last
    # Not pushed: the follower did not wait.
    assert await anext(follower) == first
    waiting = asyncio.create_task(anext(follower))
    await next_tick()
    add_events(turn, 50, 60)
    assert [len(event) for event in pushed] == [50, 60]
    await next_tick()
    assert not waiting.done()
    takes = False
    add_events(turn, 70)
    assert len(await waiting) == 70
    waiting = asyncio.create_task(anext(follower))
    turn.end()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert len(pushed) == 2


async def test_nothing_is_pushed_to_a_follower_that_was_cancelled() -> None:
    turn = new_turn()
    follower = turn.follow()
    follower.push = lambda _: pytest.fail("pushed")
    waiting = asyncio.create_task(anext(follower))
    await next_tick()
    waiting.cancel()
    await asyncio.wait([waiting])
    add_events(turn, 40)
    assert turn._followers == []


async def test_each_follower_starts_after_its_own_event() -> None:
    turn = new_turn()
    add_events(turn, 40, 50, 60)
    followers = [asyncio.create_task(read_to_end(turn, after)) for after in (0, 2, 3, 99)]
    await next_tick()
    add_events(turn, 70)
    await next_tick()
    turn.end()
    first, second, third, last = turn.events
    assert await asyncio.gather(*followers) == [
        [first + second + third, last],
        [third, last],
        [last],
        # The turn ends before it reaches this number.
        [],
    ]


async def test_a_disconnected_follower_does_not_affect_the_others() -> None:
    turn = new_turn()
    disconnected, remaining = (asyncio.create_task(read_to_end(turn)) for _ in range(2))
    await next_tick()
    disconnected.cancel()
    await next_tick()
    add_events(turn, 40)
    turn.end()
    assert await remaining == list(turn.events)
    assert disconnected.cancelled()


async def test_the_final_event_is_returned_after_the_end_of_the_turn() -> None:
    turn = new_turn()
    add_events(turn, 40, 40)
    waiting = asyncio.create_task(turn.final_event())
    await next_tick()
    turn.add("done", {"message": "Hi"})
    await next_tick()
    assert not waiting.done()
    turn.end()
    assert await waiting == b'id: 3\nevent: done\ndata: {"message":"Hi"}\n\n'


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ([MAX_WRITE_BYTES], 1),
        ([MAX_WRITE_BYTES + 1], 1),
        ([MAX_WRITE_BYTES - 100, 100], 2),
        ([MAX_WRITE_BYTES - 99, 100], 1),
        ([100, MAX_WRITE_BYTES], 1),
        ([100, 100, MAX_WRITE_BYTES, 100], 2),
        ([MAX_WRITE_BYTES // 4] * 6, 4),
    ],
)
def test_one_write_contains_as_many_events_as_fit(sizes: list[int], count: int) -> None:
    turn = new_turn()
    add_events(turn, *sizes, 100)
    assert turn.next_events(0) == (b"".join(turn.events[:count]), count)


def test_one_write_starts_after_the_given_event() -> None:
    turn = new_turn()
    add_events(turn, 40, 50, 60)
    assert turn.next_events(1) == (turn.events[1] + turn.events[2], 3)
    assert turn.next_events(2) == (turn.events[2], 3)


async def run_stoppable(
    turn: Turn, steps: list[str], block_s: float = 60, timeout_s: float = 60
) -> None:
    async with turn.stoppable(timeout_s):
        steps.append("started")
        await asyncio.sleep(block_s)
        steps.append("completed")
    steps.append("after the block")


async def test_a_stop_interrupts_the_completion() -> None:
    turn, steps = new_turn(), list[str]()
    running = asyncio.create_task(run_stoppable(turn, steps))
    await next_tick()
    turn.stop("stopped")
    await asyncio.wait_for(running, 5)
    assert steps == ["started", "after the block"]
    assert turn.stop_reason == "stopped"


async def test_a_stop_before_the_completion_interrupts_it_at_its_first_step() -> None:
    turn, steps = new_turn(), list[str]()
    turn.stop("disconnected")
    await asyncio.wait_for(run_stoppable(turn, steps), 5)
    assert steps == ["started", "after the block"]


async def test_a_completion_that_is_not_stopped_ends_normally() -> None:
    turn, steps = new_turn(), list[str]()
    await run_stoppable(turn, steps, block_s=0)
    assert steps == ["started", "completed", "after the block"]
    # After the completion, a stop interrupts nothing.
    turn.stop("stopped")
    await next_tick()
    assert turn.stop_reason is None


async def test_only_the_first_stop_counts() -> None:
    turn, steps = new_turn(), list[str]()
    turn.stop("disconnected")
    turn.stop("shutdown")
    assert turn.stop_reason == "disconnected"
    await asyncio.wait_for(run_stoppable(turn, steps), 5)
    turn.stop("stopped")
    assert turn.stop_reason == "disconnected"


async def test_a_completion_that_exceeds_the_time_limit_fails() -> None:
    turn, steps = new_turn(), list[str]()
    with pytest.raises(CompletionTimeout) as failure:
        await run_stoppable(turn, steps, timeout_s=0.01)
    assert failure.value.detail == "not complete within 0.01 s"
    assert steps == ["started"]


async def test_a_stop_during_the_cleanup_after_the_time_limit_has_no_effect() -> None:
    turn = new_turn()

    async def complete() -> None:
        async with turn.stoppable(0.01):
            try:
                await asyncio.sleep(60)
            finally:
                turn.stop("stopped")
                await next_tick()

    # The client's stop arrives last, so the turn counts as stopped.
    await asyncio.wait_for(complete(), 5)
    assert turn.stop_reason == "stopped"


@pytest.mark.parametrize(
    ("kind", "last", "stop_reason", "retention_s"),
    [
        ({}, "done", None, 300),
        ({}, "error", None, 300),
        ({}, "done", "disconnected", 300),
        ({"claim": new_claim()}, None, None, 3600),
        ({"claim": new_claim()}, "done", None, 3600),
        ({"claim": new_claim()}, "done", "stopped", 3600),
        # Another request with this key may run these turns again.
        ({"claim": new_claim()}, "error", None, 300),
        ({"claim": new_claim()}, "error", "shutdown", 300),
        ({"claim": new_claim()}, "done", "disconnected", 300),
        # The answer was complete when the client disconnected.
        ({"claim": new_claim()}, "complete", "disconnected", 3600),
    ],
)
def test_the_retention_depends_on_the_outcome_and_on_the_key(
    kind: dict[str, Claim],
    last: EventName | Literal["complete"] | None,
    stop_reason: StopReason | None,
    retention_s: int,
) -> None:
    turn = new_turn(**kind)
    if last is not None:
        turn.add("start", {})
        turn.add("delta", {})
        turn.add("done" if last == "complete" else last, {"text": "\nevent: error\n"})
    if stop_reason is not None:
        turn.stop(stop_reason)
        turn.is_incomplete = last != "complete"
    assert turn.retention_s == retention_s


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (None, None),
        ("stopped", None),
        ("disconnected", None),
        ("shutdown", ShuttingDown),
        ("superseded", TurnLost),
    ],
)
def test_a_stop_by_the_service_is_an_error(
    reason: StopReason | None, error: type[Any] | None
) -> None:
    turn = new_turn()
    if reason is not None:
        turn.stop(reason)
    stop_error = turn.stop_error()
    assert (type(stop_error) if stop_error else None) is error
