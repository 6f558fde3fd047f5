"""`make bench`: everything in one run, interleaved, medians, in under five minutes."""

import json
import os
import platform
import sys
from pathlib import Path
from statistics import median

from benchmarks import flight, pages, report, stage, store, streams, turns
from benchmarks.figures import Figures
from benchmarks.load import BUSY_SHARE
from benchmarks.report import Line

RUNS = 3
WORKERS = 4
WORKERS_CONNECTIONS = 256
STORE_COUNTS = {"store": 150_000, "pool": 20_000, "floor": 150_000}


def measure_turns(socket: Path, figures: Figures) -> None:
    """Measure all peers in turn, as often as medians need."""
    with stage.upstream():
        for _ in range(RUNS):
            for peer in stage.peers(socket):
                for cell, result in turns.measure(socket, peer).items():
                    figures.add(peer.name, cell, result)
                print(f"  {peer.name}: {figures.last(peer.name).per_second:,.0f} turns/s")
            peer = stage.relaxed_floor(socket)
            figures.add(
                peer.name, turns.MAIN, turns.measure_one(socket, peer, connections=turns.MAIN[0])
            )


def measure_workers(socket: Path, figures: Figures) -> None:
    """Measure several workers and one in turn, all of them over the same cores."""
    with stage.instant_upstream():
        for _ in range(RUNS):
            for count in (1, WORKERS):
                peer = stage.groqchat_workers(socket, count)
                result = turns.measure_one(socket, peer, connections=WORKERS_CONNECTIONS)
                figures.add(peer.name, turns.MAIN, result)
                print(f"  {peer.name}: {result.per_second:,.0f} turns/s")


def measure_store(socket: Path, figures: Figures) -> None:
    """Measure the ways to save in turn."""
    for _ in range(RUNS):
        for kind, count in STORE_COUNTS.items():
            command = [sys.executable, "-m", "benchmarks.store", kind, str(socket), str(count)]
            found = json.loads(stage.run_on_core(command, stage.SERVICE_CORE))
            figures.store.setdefault(kind, []).append(found)
            print(f"  {kind}: {found:,.0f} messages/s")
        yardstick = store.redis_benchmark(socket, STORE_COUNTS["store"])
        if yardstick is not None:
            figures.store.setdefault("redis-benchmark", []).append(yardstick)
            print(f"  redis-benchmark: {yardstick:,.0f} messages/s")


def page_lines(socket: Path) -> list[Line]:
    """Return what pages cost and messages weigh."""
    with stage.redis_server() as fresh:
        light, heavy = (pages.run(pages.memory_per_message(fresh, chars)) for chars in (90, 200))
    short, long = (pages.run(pages.history_page_ms(socket, count)) for count in (100, 10_000))
    few, many = (pages.run(pages.sessions_page_ms(socket, count)) for count in (1000, 1_000_000))
    return [
        Line(
            what="page of a history of 10,000 messages",
            figure=f"{long:.2f} ms; of 100: {short:.2f} ms",
            aim="flat",
            met=long <= 1.5 * short,
        ),
        Line(
            what="page of 1,000,000 sessions",
            figure=f"{many:.2f} ms; of 1,000: {few:.2f} ms",
            aim="flat",
            met=many <= 1.5 * few,
        ),
        Line(
            what="bytes a message of 90 characters",
            figure=f"{light:.0f}",
            aim="<= 200",
            met=light <= 200,
        ),
        Line(what="bytes a message of 200 characters", figure=f"{heavy:.0f}"),
    ]


def stream_lines(socket: Path) -> list[Line]:
    """Return what streams amount to."""
    found: dict[str, list[streams.StreamFigures]] = {"groqchat": [], "relay": []}
    for _ in range(RUNS):
        for peer in (stage.peers(socket)[0], stage.relay(socket)):
            figures = streams.measure(peer)
            found[peer.name].append(figures)
            print(f"  {peer.name}: {figures.chunk_us:.1f} us a piece")
    pairs = zip(found["groqchat"], found["relay"], strict=True)
    times = median(ours.chunk_us / floor.chunk_us for ours, floor in pairs)
    chunk_us = median(each.chunk_us for each in found["groqchat"])
    first_ms = streams.first_piece_ms(stage.peers(socket)[0])
    whole = min(each.whole for each in found["groqchat"])
    return [
        Line(
            what=f"{streams.STREAMS:,} streams at once: whole",
            figure=f"{whole:,}",
            aim=f"{streams.STREAMS:,}",
            met=whole == streams.STREAMS,
        ),
        Line(
            what="a piece of a stream",
            figure=f"{chunk_us:.0f} us, {times:.2f} times a plain relay's",
            aim="<= 2 times",
            met=times <= 2,
        ),
        Line(
            what="first piece of a stream, added",
            figure=f"{first_ms:.2f} ms",
            aim="< 5 ms",
            met=first_ms < 5,
        ),
    ]


def flight_lines(socket: Path) -> list[Line]:
    """Return what thousands of turns in flight amount to."""
    found = flight.measure(socket)
    count = f"{found.in_flight:,} turns in flight"
    lag = f"p50 {found.added_p50_ms:.0f} ms, p99 {found.added_p99_ms:.0f} ms"
    return [
        Line(what=f"{count}: errors", figure=str(found.errors), aim="0", met=found.errors == 0),
        Line(
            what=f"{count}: memory each",
            figure=f"{found.kib_per_turn:.0f} KiB",
            aim="<= 60 KiB",
            met=found.kib_per_turn <= 60,
        ),
        Line(
            what=f"{count}: latency added",
            figure=lag,
            aim="p99 <= 100 ms",
            met=found.added_p99_ms <= 100,
        ),
        Line(
            what=f"{count}: the load generator's share of its core",
            figure=f"{found.generator_cpu_share:.2f}",
        ),
        Line(
            what=f"{count}: event loop's lag",
            figure=f"p99 {found.lag_p99_ms:.0f} ms",
        ),
    ]


def main() -> None:
    """Measure, print the table, write the results."""
    figures = Figures()
    with stage.redis_server() as socket:
        print("turns")
        measure_turns(socket, figures)
        print("workers")
        measure_workers(socket, figures)
        print("store")
        measure_store(socket, figures)
        print("pages and memory")
        lines = [*figures.turn_lines(WORKERS), *figures.store_lines(), *page_lines(socket)]
        print("streams")
        lines += stream_lines(socket)
        print("turns in flight")
        lines += flight_lines(socket)
    bars = [(name, figures.per_second(name)) for name in ("floor", "groqchat", "usual")]
    notes = [
        (
            f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {RUNS} "
            "interleaved runs. The floor is aiohttp with a raw connection to Redis and a plain "
            "POST, with no validation, errors or limits, once with Python's own settings of the "
            "garbage collector and once with groqchat's; the usual way is FastAPI with "
            "redis.asyncio and the SDK's `create()`. All on one core each, over the same server "
            "and stand-in. The floor and the bare protocol are what plain means cost, not the "
            "least that is possible: aiohttp's own client, and one connection to Redis, which "
            "waits while its replies are dealt with."
        )
    ]
    if figures.busiest >= BUSY_SHARE or stage.SERVICE_CORE in (
        stage.LOAD_CORE,
        stage.UPSTREAM_CORE,
    ):
        notes.append("The load generator or a shared core limited these figures.")
    workers = (
        f"One worker and {WORKERS} ran on any core, with a server in Groq's place that answers at "
        "once without reading."
    )
    if len(stage.CORES) < WORKERS + 3:
        workers += (
            f" With {len(stage.CORES)} cores they shared theirs with it, Redis and the load "
            "generator: what they show is a lower bound."
        )
    notes += ["", workers]
    print(report.write(lines, figures.matrix(), bars, notes))


if __name__ == "__main__":
    main()
