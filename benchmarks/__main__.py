"""`make bench`: run every measurement in about six minutes and write the report."""

import sys
from pathlib import Path
from statistics import median

import orjson

from benchmarks import concurrency, harness, pages, report, store, streams, turns
from benchmarks.figures import Figures
from benchmarks.notes import introduction
from benchmarks.report import Row

RUNS = 3
WORKERS = 4
WORKERS_CONNECTIONS = 256
SAVED_MESSAGES = {store.STORE: 150_000, store.POOL: 20_000, store.RAW: 150_000}
# A page of the long list may be this many times slower than a page of the short list.
MAX_PAGE_GROWTH = 1.5


def measure_turns(socket: Path, figures: Figures) -> None:
    """Measure the services in turn, RUNS times."""
    peers = (harness.groqchat(socket), harness.floor(socket), harness.naive_service(socket))
    tuned_floor = harness.tuned_floor(socket)
    with harness.mock_groq():
        for _ in range(RUNS):
            for peer in peers:
                for load, result in turns.measure_all_loads(socket, peer).items():
                    figures.add(peer.name, load, result)
                print(f"  {peer.name}: {figures.last(peer.name).per_second:,.0f} turns/s")
            result = turns.measure_main_history(socket, tuned_floor, connections=turns.MAIN[0])
            figures.add(tuned_floor.name, turns.MAIN, result)
            print(f"  {tuned_floor.name}: {result.per_second:,.0f} turns/s")


def measure_workers(socket: Path, figures: Figures) -> None:
    """Measure one worker and several workers in turn, RUNS times, on all cores."""
    with harness.constant_groq():
        for _ in range(RUNS):
            for count in (1, WORKERS):
                peer = harness.groqchat_workers(socket, count)
                result = turns.measure_main_history(socket, peer, connections=WORKERS_CONNECTIONS)
                figures.add(peer.name, turns.MAIN, result)
                print(f"  {peer.name}: {result.per_second:,.0f} turns/s")


def measure_saved_messages(socket: Path, figures: Figures) -> None:
    """Measure the ways to save a message in turn, RUNS times."""
    for _ in range(RUNS):
        for way, count in SAVED_MESSAGES.items():
            command = [sys.executable, "-m", "benchmarks.store", way, str(socket), str(count)]
            per_second = orjson.loads(harness.run_on_core(command, harness.SERVICE_CORE))
            figures.add_saved(way, per_second)
            print(f"  {way}: {per_second:,.0f} messages/s")
        reference = store.redis_benchmark(socket, SAVED_MESSAGES[store.STORE])
        if reference is not None:
            figures.add_saved(store.REDIS_BENCHMARK, reference)
            print(f"  {store.REDIS_BENCHMARK}: {reference:,.0f} messages/s")


def page_rows(socket: Path) -> list[Row]:
    """Measure pages and the memory of a message, and return the rows of the report."""
    with harness.redis_server() as empty:
        light, heavy = (pages.run(pages.bytes_per_message(empty, chars)) for chars in (90, 200))
    short, long = (pages.run(pages.history_page_ms(socket, count)) for count in (100, 10_000))
    few, many = (pages.run(pages.sessions_page_ms(socket, count)) for count in (1000, 1_000_000))
    return [
        Row(
            measurement=f"Page of {pages.PAGE} messages from a session of 10,000",
            result=f"{long:.2f} ms; {short:.2f} ms from a session of 100",
            target=f"<= {MAX_PAGE_GROWTH} times the session of 100",
            met=long <= MAX_PAGE_GROWTH * short,
        ),
        Row(
            measurement=f"Page of {pages.PAGE} sessions from a list of 1,000,000",
            result=f"{many:.2f} ms; {few:.2f} ms from a list of 1,000",
            target=f"<= {MAX_PAGE_GROWTH} times the list of 1,000",
            met=many <= MAX_PAGE_GROWTH * few,
        ),
        Row(
            measurement="Redis memory per message of 90 characters",
            result=f"{light:.0f} bytes",
            target="<= 200 bytes",
            met=light <= 200,
        ),
        Row(
            measurement="Redis memory per message of 200 characters",
            result=f"{heavy:.0f} bytes",
        ),
    ]


def stream_rows(socket: Path) -> list[Row]:
    """Measure streams and return the rows of the report."""
    groqchat, plain_proxy = harness.groqchat(socket), harness.plain_proxy(socket)
    found: dict[str, list[streams.StreamFigures]] = {groqchat.name: [], plain_proxy.name: []}
    for _ in range(RUNS):
        for peer in (groqchat, plain_proxy):
            figures = streams.measure(peer)
            found[peer.name].append(figures)
            print(f"  {peer.name}: {figures.cpu_us_per_chunk:.1f} us of CPU time per chunk")
    pairs = zip(found[groqchat.name], found[plain_proxy.name], strict=True)
    times = median(ours.cpu_us_per_chunk / proxy.cpu_us_per_chunk for ours, proxy in pairs)
    cpu_us_per_chunk = median(run.cpu_us_per_chunk for run in found[groqchat.name])
    delay_ms = streams.first_chunk_delay_ms(groqchat)
    complete = min(run.complete for run in found[groqchat.name])
    count = f"{streams.STREAMS:,} concurrent streams"
    return [
        Row(
            measurement=f"{count}: complete streams",
            result=f"{complete:,} streams",
            target=f"{streams.STREAMS:,} streams",
            met=complete == streams.STREAMS,
        ),
        Row(
            measurement=f"{count}: CPU time of groqchat per chunk",
            result=f"{cpu_us_per_chunk:.0f} us, {times:.2f} times the plain proxy",
            target="<= 2 times the plain proxy",
            met=times <= 2,
        ),
        Row(
            measurement="One stream at a time: delay that groqchat adds to the first chunk",
            result=f"{delay_ms:.2f} ms",
            target="< 5 ms",
            met=delay_ms < 5,
        ),
    ]


def concurrency_rows(socket: Path) -> list[Row]:
    """Measure thousands of concurrent turns and return the rows of the report."""
    found = concurrency.measure(socket)
    count = f"{found.concurrent_turns:,} concurrent turns"
    return [
        Row(
            measurement=f"{count}: failed requests",
            result=str(found.errors),
            target="0",
            met=found.errors == 0,
        ),
        Row(
            measurement=f"{count}: memory of groqchat per turn",
            result=f"{found.kib_per_turn:.0f} KiB",
            target="<= 60 KiB",
            met=found.kib_per_turn <= 60,
        ),
        Row(
            measurement=f"{count}: latency that groqchat adds to a Groq answer of 5 s",
            result=f"p50 {found.added_p50_ms:.0f} ms, p99 {found.added_p99_ms:.0f} ms",
            target="p99 <= 100 ms",
            met=found.added_p99_ms <= 100,
        ),
        Row(
            measurement=f"{count}: CPU use of the load generator",
            result=f"{found.generator_cpu_share:.2f} of one core",
        ),
        Row(
            measurement=f"{count}: event loop delay, measured with `GET /healthz`",
            result=f"p99 {found.loop_delay_p99_ms:.0f} ms",
        ),
    ]


def main() -> None:
    """Run every measurement, write the report and print its table."""
    figures = Figures()
    with harness.redis_server() as socket:
        print("turns")
        measure_turns(socket, figures)
        print("workers")
        measure_workers(socket, figures)
        print("saved messages")
        measure_saved_messages(socket, figures)
        print("pages and memory")
        rows = [*figures.turn_rows(WORKERS), *figures.saved_rows(), *page_rows(socket)]
        print("streams")
        rows += stream_rows(socket)
        print("concurrent turns")
        rows += concurrency_rows(socket)
    bars = [
        (peer, figures.per_second(peer))
        for peer in (harness.FLOOR, harness.GROQCHAT, harness.NAIVE)
    ]
    text = introduction(runs=RUNS, workers=WORKERS, generator_cpu_share=figures.generator_cpu_share)
    print(report.write(rows, introduction=text, load_table=figures.load_table(), bars=bars))


if __name__ == "__main__":
    main()
