"""Streams: what a piece of an answer costs beside a plain relay, and when the first one arrives.

Run as a process of its own, so that it has a core of its own:
`python -m benchmarks.streams FILE`, where FILE holds the arguments of `read_streams` as JSON. It
prints one JSON object.
"""

import asyncio
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import orjson

from benchmarks import stage
from benchmarks.turns import MESSAGE, MODEL

STREAMS = 1000
CHUNKS = 50
# The pieces of all streams together arrive as fast as one core can pass them on, or slower.
CHUNK_MS = 80.0
TIMEOUT_S = 90.0
FIRSTS = 100
FIRST_RUNS = 3
LAST_MARKS = (b"\nevent: done\n", b"data: [DONE]")
FIRST_MARKS = (b"\nevent: delta\n", b'"content":"This ')
ASKED = {
    "message": MESSAGE,
    "model": MODEL,
    "messages": [{"role": "user", "content": MESSAGE}],
    "stream": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What one run of many streams saw; times in milliseconds from the request on."""

    streams: int
    whole: int
    first_p50_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFigures:
    """What streams cost; `chunk_us` is processor time for one piece of one stream."""

    whole: int
    chunk_us: float


async def read_streams(port: int, body: str, streams: int, *, one_by_one: bool) -> Read:
    """Read streams to their ends, all at once or one after the other."""
    content = body.encode()
    request = (
        f"POST {{}} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer bench\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    path = "/openai/v1/chat/completions" if port == stage.UPSTREAM_PORT else "/api/groq-chat/chat"
    whole = request.format(path).encode() + content
    async with asyncio.timeout(TIMEOUT_S):
        if one_by_one:
            results = [await _read_one(port, whole) for _ in range(streams)]
        else:
            results = await asyncio.gather(*(_read_one(port, whole) for _ in range(streams)))
    firsts = [first for first, _ in results]
    return Read(
        streams=streams,
        whole=sum(is_whole for _, is_whole in results),
        first_p50_ms=median(firsts) * 1000,
    )


async def _read_one(port: int, request: bytes) -> tuple[float, bool]:
    """Return after how many seconds the first piece came, and whether the last one did."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(request)
    first = 0.0
    tail = b""
    while data := await reader.read(65536):
        tail = tail[-64:] + data
        if not first and any(mark in tail for mark in FIRST_MARKS):
            first = time.perf_counter() - began
        if any(mark in tail for mark in LAST_MARKS):
            break
    is_whole = any(mark in tail for mark in LAST_MARKS)
    writer.close()
    return first, is_whole


def measure(peer: stage.Peer) -> StreamFigures:
    """Measure many streams at once of one peer, once."""
    with stage.upstream(chunk_ms=CHUNK_MS, chunks=CHUNKS), stage.service(peer) as running:
        before = _cpu_s(running.pid)
        read = _read(stage.SERVICE_PORT, _body(peer), STREAMS, one_by_one=False)
        cpu_s = _cpu_s(running.pid) - before
    return StreamFigures(whole=read.whole, chunk_us=cpu_s * 1e6 / (STREAMS * CHUNKS))


def first_piece_ms(peer: stage.Peer) -> float:
    """Return how much later the first piece comes than from the stand-in itself."""
    runs: list[float] = []
    with stage.upstream(), stage.service(peer):
        for _ in range(FIRST_RUNS):
            own = _read(stage.SERVICE_PORT, _body(peer), FIRSTS, one_by_one=True)
            upstream = _read(stage.UPSTREAM_PORT, _upstream_body(), FIRSTS, one_by_one=True)
            runs.append(own.first_p50_ms - upstream.first_p50_ms)
    return median(runs)


def _body(peer: stage.Peer) -> str:
    return orjson.dumps({key: ASKED[key] for key in peer.fields}).decode()


def _upstream_body() -> str:
    return orjson.dumps({key: ASKED[key] for key in ("model", "messages", "stream")}).decode()


def _read(port: int, body: str, streams: int, *, one_by_one: bool) -> Read:
    options = {"port": port, "body": body, "streams": streams, "one_by_one": one_by_one}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(options, file)
        file.flush()
        command = [sys.executable, "-m", "benchmarks.streams", file.name]
        return Read(**orjson.loads(stage.run_on_core(command, stage.LOAD_CORE)))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / stage.CLOCK_TICKS


def main() -> None:
    """Run what the first argument describes."""
    import uvloop  # noqa: PLC0415 - the generator is to be as fast as can be

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(asdict(uvloop.run(read_streams(**options)))))


if __name__ == "__main__":
    main()
