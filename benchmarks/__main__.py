"""`make bench`: everything in one run, interleaved, medians, in under five minutes."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import flight, pages, report, stage, turns
from benchmarks.load import BUSY_SHARE, Result
from benchmarks.report import Line

RUNS = 3
SECONDS = 3.0
WORKERS = 4
WORKERS_CONNECTIONS = 256
STORE_COUNTS = {"store": 60_000, "pool": 15_000, "floor": 60_000}


@dataclass
class Figures:
    """What was measured, by peer, connections and length of history."""

    turns: dict[tuple[str, int, int], list[Result]] = field(default_factory=dict)
    store: dict[str, list[float]] = field(default_factory=dict)

    def per_second(self, peer: str, connections: int = 64, history: int = 20) -> float:
        return median(each.per_second for each in self.turns[peer, connections, history])

    def p50_ms(self, peer: str, connections: int, history: int = 20) -> float:
        return median(each.p50_ms for each in self.turns[peer, connections, history])

    def ratios(self, peer: str, other: str) -> float:
        """Return the median ratio of runs that followed each other."""
        pairs = zip(self.turns[peer, 64, 20], self.turns[other, 64, 20], strict=True)
        return median(one.per_second / two.per_second for one, two in pairs)


def measure_turns(socket: Path, figures: Figures) -> None:
    """Measure all peers in turn, as often as medians need."""
    everyone = {peer.name: peer for peer in stage.peers(socket)}
    plan: Sequence[tuple[str, int, int]] = [
        *((name, 64, 20) for name in everyone),
        *((name, connections, 20) for connections in (1, 512) for name in ("groqchat", "floor")),
        ("groqchat", 64, 2),
        ("groqchat", 64, 50),
    ]
    with stage.upstream():
        for _ in range(RUNS):
            for name, connections, history in plan:
                result = turns.measure(
                    socket,
                    everyone[name],
                    connections=connections,
                    history=history,
                    seconds=SECONDS,
                )
                figures.turns.setdefault((name, connections, history), []).append(result)
                print(f"  {name} x{connections} h{history}: {result.per_second:,.0f} turns/s")
            for count in (1, WORKERS):
                peer = stage.groqchat_workers(socket, count)
                result = turns.measure(
                    socket, peer, connections=WORKERS_CONNECTIONS, history=20, seconds=SECONDS
                )
                figures.turns.setdefault((peer.name, 64, 20), []).append(result)
                print(f"  {peer.name}: {result.per_second:,.0f} turns/s")


def measure_store(socket: Path, figures: Figures) -> None:
    """Measure the ways to save in turn."""
    for _ in range(RUNS):
        for kind, count in STORE_COUNTS.items():
            running = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.store", kind, str(socket), str(count)],
                stdout=subprocess.PIPE,
            )
            stage.pin(running.pid, stage.SERVICE_CORE)
            output, _ = running.communicate(timeout=stage.LOAD_TIMEOUT_S)
            figures.store.setdefault(kind, []).append(json.loads(output))
            print(f"  {kind}: {figures.store[kind][-1]:,.0f} messages/s")


def turn_lines(figures: Figures) -> list[Line]:
    """Return what the turns amount to."""
    ours, floor = figures.per_second("groqchat"), figures.per_second("floor")
    of_floor = figures.ratios("groqchat", "floor")
    of_usual = figures.ratios("groqchat", "usual")
    one = figures.p50_ms("groqchat", 1) / figures.p50_ms("floor", 1)
    growth = figures.per_second("groqchat", 64, 2) / figures.per_second("groqchat", 64, 50)
    many = figures.per_second("groqchat", 512) / figures.per_second("floor", 512)
    spread = figures.ratios(f"{WORKERS} workers", "1 workers")
    p50 = f"{figures.p50_ms('groqchat', 1):.2f} ms, {one:.2f} times the floor's"
    return [
        Line(what="turns/s", figure=f"{ours:,.0f}", aim="", met=None),
        Line(what="the floor's", figure=f"{floor:,.0f}", aim="", met=None),
        Line(
            what="share of the floor", figure=f"{of_floor:.2f}", aim=">= 0.65", met=of_floor >= 0.65
        ),
        Line(what="times the usual way", figure=f"{of_usual:.1f}", aim=">= 15", met=of_usual >= 15),
        Line(what="share of the floor, 512 connections", figure=f"{many:.2f}", aim="", met=None),
        Line(what="p50, 1 connection", figure=p50, aim="<= 1.6 times", met=one <= 1.6),
        Line(
            what="cost with 50 messages, in those with 2",
            figure=f"{growth:.2f}",
            aim="<= 1.5",
            met=growth <= 1.5,
        ),
        Line(
            what=f"{WORKERS} workers, times one",
            figure=f"{spread:.2f}",
            aim=">= 2.5 with cores to spare",
            met=None if len(stage.CORES) < WORKERS + 3 else spread >= 2.5,
        ),
    ]


def store_lines(figures: Figures) -> list[Line]:
    """Return what the store amounts to."""
    store, pool, floor = (median(figures.store[kind]) for kind in ("store", "pool", "floor"))
    return [
        Line(what="messages saved/s", figure=f"{store:,.0f}", aim="", met=None),
        Line(
            what="times a pool connection a message",
            figure=f"{store / pool:.1f}",
            aim=">= 4",
            met=store / pool >= 4,
        ),
        Line(
            what="share of the bare protocol",
            figure=f"{store / floor:.2f}",
            aim=">= 0.33",
            met=store / floor >= 1 / 3,
        ),
    ]


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
        Line(what="bytes a message of 200 characters", figure=f"{heavy:.0f}", aim="", met=None),
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
            what=f"{count}: event loop's lag",
            figure=f"p99 {found.lag_p99_ms:.0f} ms",
            aim="",
            met=None,
        ),
    ]


def main() -> None:
    """Measure, print the table, write the results."""
    figures = Figures()
    with stage.redis_server() as socket:
        print("turns")
        measure_turns(socket, figures)
        print("store")
        measure_store(socket, figures)
        print("pages and memory")
        lines = [*turn_lines(figures), *store_lines(figures), *page_lines(socket)]
        print("turns in flight")
        lines += flight_lines(socket)
    bars = [(name, figures.per_second(name)) for name in ("floor", "groqchat", "usual")]
    busiest = max(
        each.generator_cpu_share for results in figures.turns.values() for each in results
    )
    notes = [
        (
            f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {RUNS} "
            "interleaved runs. The floor is aiohttp with a raw connection to Redis and a plain "
            "POST, with no validation, errors or limits; the usual way is FastAPI with "
            "redis.asyncio and the SDK's `create()`. All on one core each, over the same server "
            "and stand-in."
        )
    ]
    if busiest >= BUSY_SHARE or stage.SERVICE_CORE in (stage.LOAD_CORE, stage.UPSTREAM_CORE):
        notes.append("The load generator or a shared core limited these figures.")
    if len(stage.CORES) < WORKERS + 3:
        notes.append(
            f"With {len(stage.CORES)} cores, {WORKERS} workers share theirs with the stand-in, "
            "Redis and the load generator: what they show is a lower bound."
        )
    print(report.write(lines, bars, notes))


if __name__ == "__main__":
    main()
