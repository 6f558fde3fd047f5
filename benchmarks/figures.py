"""The figures of turns and of saved messages, and their rows in the report."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from benchmarks import harness, store
from benchmarks.harness import FLOOR, GROQCHAT, NAIVE, TUNED_FLOOR
from benchmarks.load import LoadResult
from benchmarks.report import Row
from benchmarks.turns import CONNECTIONS, HISTORIES, MAIN, Load


@dataclass
class Figures:
    """The results of every run.

    `turns` maps a peer and a load to its results, `saved_per_second` a way to save to its messages
    per second.
    """

    turns: dict[tuple[str, Load], list[LoadResult]] = field(default_factory=dict)
    saved_per_second: dict[str, list[float]] = field(default_factory=dict)

    def add(self, peer: str, load: Load, result: LoadResult) -> None:
        """Add the result of one run; raises RuntimeError if a request failed."""
        if result.errors:
            raise RuntimeError(f"{peer}, {load}: {result.errors} errors")
        self.turns.setdefault((peer, load), []).append(result)

    def add_saved(self, way: str, per_second: float) -> None:
        """Add the messages per second of one run of a way to save."""
        self.saved_per_second.setdefault(way, []).append(per_second)

    def last(self, peer: str) -> LoadResult:
        """Return the newest result of a peer with the main load."""
        return self.turns[peer, MAIN][-1]

    @property
    def generator_cpu_share(self) -> float:
        """The highest share of its core that the load generator used."""
        return max(each.generator_cpu_share for found in self.turns.values() for each in found)

    def per_second(self, peer: str, load: Load = MAIN) -> float:
        """Return the median throughput in turns per second."""
        return median(result.per_second for result in self.turns[peer, load])

    def p50_ms(self, peer: str, load: Load) -> float:
        """Return the median of the median latencies of all runs."""
        return median(result.p50_ms for result in self.turns[peer, load])

    def ratio(
        self, peer: str, other: str, *, load: Load = MAIN, other_load: Load | None = None
    ) -> float:
        """Return the throughput of one peer divided by another's: the median of all runs."""
        pairs = zip(self.turns[peer, load], self.turns[other, other_load or load], strict=True)
        return median(first.per_second / second.per_second for first, second in pairs)

    def turn_rows(self, workers: int) -> list[Row]:
        """Return the report's rows about turns."""
        return [
            *self._throughput_rows(),
            self._latency_row(),
            self._history_row(),
            self._workers_row(workers),
        ]

    def _throughput_rows(self) -> list[Row]:
        share = self.ratio(GROQCHAT, FLOOR)
        tuned_share = self.ratio(GROQCHAT, TUNED_FLOOR)
        times_naive = self.ratio(GROQCHAT, NAIVE)
        return [
            Row(
                measurement="Throughput of groqchat",
                result=f"{self.per_second(GROQCHAT):,.0f} turns/s",
            ),
            Row(
                measurement="Throughput of the floor",
                result=f"{self.per_second(FLOOR):,.0f} turns/s",
            ),
            Row(
                measurement="Share of the floor: throughput of groqchat / floor",
                result=f"{share:.2f}",
                target=">= 0.65",
                met=share >= 0.65,
            ),
            Row(
                measurement="Share of the floor with groqchat's GC settings",
                result=f"{tuned_share:.2f}",
                target=">= 0.65",
                met=tuned_share >= 0.65,
            ),
            Row(
                measurement="Times the naive service: throughput of groqchat / naive service",
                result=f"{times_naive:.1f}",
                target=">= 15",
                met=times_naive >= 15,
            ),
        ]

    def _latency_row(self) -> Row:
        one_connection = (1, MAIN[1])
        p50_ms = self.p50_ms(GROQCHAT, one_connection)
        times_p50 = p50_ms / self.p50_ms(FLOOR, one_connection)
        return Row(
            measurement="Median latency of a turn, 1 connection",
            result=f"{p50_ms:.2f} ms, {times_p50:.2f} times the floor",
            target="<= 1.6 times the floor",
            met=times_p50 <= 1.6,
        )

    def _history_row(self) -> Row:
        cost = self.ratio(GROQCHAT, GROQCHAT, load=(64, 2), other_load=(64, 50))
        return Row(
            measurement="Throughput with 2 messages per session / with 50",
            result=f"{cost:.2f}",
            target="<= 1.5",
            met=cost <= 1.5,
        )

    def _workers_row(self, workers: int) -> Row:
        many = harness.workers_name(workers)
        speedup = self.ratio(many, harness.workers_name(1))
        return Row(
            measurement=f"Throughput of {many} / 1 worker, 256 connections, all cores",
            result=f"{speedup:.2f}; {self.per_second(many):,.0f} turns/s with {many}",
            target=f">= 2.5 on {workers} cores",
            met=None if len(harness.CORES) < workers else speedup >= 2.5,
        )

    def saved_rows(self) -> list[Row]:
        """Return the report's rows about saved messages."""
        medians = {way: median(found) for way, found in self.saved_per_second.items()}
        per_second = medians[store.STORE]
        times_pool = per_second / medians[store.POOL]
        share = per_second / medians[store.RAW]
        rows = [
            Row(
                measurement="Saved messages: throughput of the history store",
                result=f"{per_second:,.0f} messages/s",
                target=">= 50,000 messages/s",
                met=per_second >= 50_000,
            ),
            Row(
                measurement="Saved messages: history store / one pipeline per message",
                result=f"{times_pool:.1f}",
                target=">= 4",
                met=times_pool >= 4,
            ),
            Row(
                measurement="Saved messages: history store / raw Redis connection",
                result=f"{share:.2f}",
                target=">= 0.33",
                met=share >= 1 / 3,
            ),
        ]
        if store.REDIS_BENCHMARK in medians:
            reference = medians[store.REDIS_BENCHMARK]
            rows.append(
                Row(
                    measurement="Saved messages: history store / `redis-benchmark -P 16`, ZADD of "
                    "messages of equal length",
                    result=f"{per_second / reference:.2f}; {reference:,.0f} messages/s "
                    "by redis-benchmark",
                    target=">= 0.33",
                    met=per_second / reference >= 1 / 3,
                )
            )
        return rows

    def load_table(self) -> Iterator[str]:
        """Yield a Markdown table of the throughput of all peers with every load."""
        yield (
            "| Connections | Messages per session | groqchat, turns/s | Floor, turns/s "
            "| Share of the floor | Naive service, turns/s | Times the naive service |"
        )
        yield "|---|---|---|---|---|---|---|"
        for connections in sorted(CONNECTIONS):
            for history in sorted(HISTORIES):
                load = (connections, history)
                groqchat, floor, naive = (
                    self.per_second(peer, load) for peer in (GROQCHAT, FLOOR, NAIVE)
                )
                share = self.ratio(GROQCHAT, FLOOR, load=load)
                times = self.ratio(GROQCHAT, NAIVE, load=load)
                yield (
                    f"| {connections} | {history} | {groqchat:,.0f} | {floor:,.0f} | {share:.2f} "
                    f"| {naive:,.0f} | {times:.1f} |"
                )
