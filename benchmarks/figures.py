"""What was measured of turns and of the store, and what it amounts to."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from benchmarks import stage
from benchmarks.load import Result
from benchmarks.report import Line
from benchmarks.turns import CONNECTIONS, HISTORIES, MAIN, Cell

STORE_PER_S = 50_000


@dataclass
class Figures:
    """Results by peer, connections and length of history; messages a second by way to save."""

    turns: dict[tuple[str, Cell], list[Result]] = field(default_factory=dict)
    store: dict[str, list[float]] = field(default_factory=dict)

    def add(self, peer: str, cell: Cell, result: Result) -> None:
        """Keep the result of one run, in which nothing may have failed."""
        if result.errors:
            raise RuntimeError(f"{peer}, {cell}: {result.errors} errors")
        self.turns.setdefault((peer, cell), []).append(result)

    def last(self, peer: str) -> Result:
        """Return the newest result by which services are compared."""
        return self.turns[peer, MAIN][-1]

    @property
    def busiest(self) -> float:
        """The share of its core that the load generator took at most."""
        return max(each.generator_cpu_share for found in self.turns.values() for each in found)

    def per_second(self, peer: str, connections: int = MAIN[0], history: int = MAIN[1]) -> float:
        """Return the median of turns a second."""
        found = self.turns[peer, (connections, history)]
        return median(each.per_second for each in found)

    def p50_ms(self, peer: str, connections: int, history: int = MAIN[1]) -> float:
        """Return the median of half the turns' latency."""
        return median(each.p50_ms for each in self.turns[peer, (connections, history)])

    def ratio(self, one: tuple[str, Cell], other: tuple[str, Cell]) -> float:
        """Return the median ratio of turns a second in the same run."""
        pairs = zip(self.turns[one], self.turns[other], strict=True)
        return median(first.per_second / second.per_second for first, second in pairs)

    def turn_lines(self, workers: int) -> list[Line]:
        """Return what the turns amount to."""
        of_floor = self.ratio(("groqchat", MAIN), ("floor", MAIN))
        of_relaxed = self.ratio(("groqchat", MAIN), (stage.RELAXED_FLOOR, MAIN))
        of_usual = self.ratio(("groqchat", MAIN), ("usual", MAIN))
        one = self.p50_ms("groqchat", 1) / self.p50_ms("floor", 1)
        growth = self.ratio(("groqchat", (64, 2)), ("groqchat", (64, 50)))
        spread = self.ratio((f"{workers} workers", MAIN), ("1 workers", MAIN))
        return [
            Line(what="turns/s", figure=f"{self.per_second('groqchat'):,.0f}"),
            Line(what="the floor's", figure=f"{self.per_second('floor'):,.0f}"),
            Line(
                what="share of the floor",
                figure=f"{of_floor:.2f}",
                aim=">= 0.65",
                met=of_floor >= 0.65,
            ),
            Line(
                what="share of the floor with groqchat's collector settings",
                figure=f"{of_relaxed:.2f}",
                aim=">= 0.65",
                met=of_relaxed >= 0.65,
            ),
            Line(
                what="times the usual way",
                figure=f"{of_usual:.1f}",
                aim=">= 15",
                met=of_usual >= 15,
            ),
            Line(
                what="p50, 1 connection",
                figure=f"{self.p50_ms('groqchat', 1):.2f} ms, {one:.2f} times the floor's",
                aim="<= 1.6 times",
                met=one <= 1.6,
            ),
            Line(
                what="cost with 50 messages, in those with 2",
                figure=f"{growth:.2f}",
                aim="<= 1.5",
                met=growth <= 1.5,
            ),
            Line(
                what=f"{workers} workers, times one",
                figure=f"{spread:.2f}, {self.per_second(f'{workers} workers'):,.0f} turns/s",
                aim=f">= 2.5 on {workers} cores",
                met=None if len(stage.CORES) < workers else spread >= 2.5,
            ),
        ]

    def store_lines(self) -> list[Line]:
        """Return what the store amounts to."""
        store, pool, floor = (median(self.store[kind]) for kind in ("store", "pool", "floor"))
        lines = [
            Line(
                what="messages saved/s",
                figure=f"{store:,.0f}",
                aim=f">= {STORE_PER_S:,}",
                met=store >= STORE_PER_S,
            ),
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
        if "redis-benchmark" in self.store:
            share = store / median(self.store["redis-benchmark"])
            lines.append(
                Line(
                    what="share of redis-benchmark -P 16, ZADD of messages like ours",
                    figure=f"{share:.2f} of {median(self.store['redis-benchmark']):,.0f}",
                    aim=">= 0.33",
                    met=share >= 1 / 3,
                )
            )
        return lines

    def matrix(self) -> Iterator[str]:
        """Yield a Markdown table of all peers, connections and lengths of history."""
        yield "| connections | messages | groqchat | floor | share | usual | times |"
        yield "|---|---|---|---|---|---|---|"
        for connections in sorted(CONNECTIONS):
            for history in sorted(HISTORIES):
                cell = (connections, history)
                ours, floor, usual = (
                    self.per_second(name, *cell) for name in ("groqchat", "floor", "usual")
                )
                share = self.ratio(("groqchat", cell), ("floor", cell))
                times = self.ratio(("groqchat", cell), ("usual", cell))
                yield (
                    f"| {connections} | {history} | {ours:,.0f} | {floor:,.0f} | {share:.2f} "
                    f"| {usual:,.0f} | {times:.1f} |"
                )
