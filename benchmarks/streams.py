"""Streams: the CPU time per chunk of groqchat and of a plain proxy, and the first chunk's delay.

The reader of the streams runs as a separate process on its own core:
`python -m benchmarks.streams FILE`. FILE contains the arguments of `read_streams` as JSON. The
process prints a `ReaderResult` as JSON.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import orjson

from benchmarks import harness
from benchmarks.turns import MESSAGE, MODEL

STREAMS = 1000
CHUNKS = 50
# At this interval, the chunks of all streams arrive at most as fast as one core can send them.
CHUNK_MS = 80.0
TIMEOUT_S = 90.0
FIRST_CHUNK_STREAMS = 100
FIRST_CHUNK_RUNS = 3
# The end of a stream and its first chunk, in groqchat's format and in Groq's.
END_MARKERS = (b"\nevent: done\n", b"data: [DONE]")
FIRST_CHUNK_MARKERS = (b"\nevent: delta\n", b'"content":"This ')
REQUEST = {
    "message": MESSAGE,
    "model": MODEL,
    "messages": [{"role": "user", "content": MESSAGE}],
    "stream": True,
}
GROQ_FIELDS = ("model", "messages", "stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderResult:
    """The measurements of one run; the time of the first chunk counts from the request."""

    streams: int
    complete: int
    first_chunk_p50_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFigures:
    """The number of complete streams, and the service's CPU time per chunk of one stream."""

    complete: int
    cpu_us_per_chunk: float


async def read_streams(port: int, body: str, streams: int, *, is_sequential: bool) -> ReaderResult:
    """Read streams to their ends, all concurrently or one after another."""
    content = body.encode()
    path = "/openai/v1/chat/completions" if port == harness.GROQ_PORT else "/api/groq-chat/chat"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer bench\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    request = head.encode() + content
    async with asyncio.timeout(TIMEOUT_S):
        if is_sequential:
            results = [await _read_stream(port, request) for _ in range(streams)]
        else:
            results = await asyncio.gather(*(_read_stream(port, request) for _ in range(streams)))
    return ReaderResult(
        streams=streams,
        complete=sum(is_complete for _, is_complete in results),
        first_chunk_p50_ms=median(first_s for first_s, _ in results) * 1000,
    )


async def _read_stream(port: int, request: bytes) -> tuple[float, bool]:
    """Return the seconds until the first chunk, and whether the stream was complete."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin = time.perf_counter()
    writer.write(request)
    first_s = 0.0
    tail = b""
    while data := await reader.read(65536):
        tail = tail[-64:] + data
        if not first_s and any(marker in tail for marker in FIRST_CHUNK_MARKERS):
            first_s = time.perf_counter() - begin
        if any(marker in tail for marker in END_MARKERS):
            break
    is_complete = any(marker in tail for marker in END_MARKERS)
    writer.close()
    return first_s, is_complete


def measure(peer: harness.Peer) -> StreamFigures:
    """Measure concurrent streams of a peer once."""
    with (
        harness.mock_groq(chunk_ms=CHUNK_MS, chunks=CHUNKS),
        harness.service(peer) as process,
    ):
        begin_cpu_s = _cpu_s(process.pid)
        result = _run_reader(harness.SERVICE_PORT, _body(peer.fields), STREAMS, is_sequential=False)
        cpu_s = _cpu_s(process.pid) - begin_cpu_s
    return StreamFigures(
        complete=result.complete, cpu_us_per_chunk=cpu_s * 1e6 / (STREAMS * CHUNKS)
    )


def first_chunk_delay_ms(peer: harness.Peer) -> float:
    """Return the delay that a peer adds to the first chunk of the mock Groq server."""
    delays_ms: list[float] = []
    with harness.mock_groq(), harness.service(peer):
        for _ in range(FIRST_CHUNK_RUNS):
            through_peer = _run_reader(
                harness.SERVICE_PORT, _body(peer.fields), FIRST_CHUNK_STREAMS, is_sequential=True
            )
            direct = _run_reader(
                harness.GROQ_PORT, _body(GROQ_FIELDS), FIRST_CHUNK_STREAMS, is_sequential=True
            )
            delays_ms.append(through_peer.first_chunk_p50_ms - direct.first_chunk_p50_ms)
    return median(delays_ms)


def _body(fields: Sequence[str]) -> str:
    return orjson.dumps({field: REQUEST[field] for field in fields}).decode()


def _run_reader(port: int, body: str, streams: int, *, is_sequential: bool) -> ReaderResult:
    options = {"port": port, "body": body, "streams": streams, "is_sequential": is_sequential}
    return ReaderResult(**harness.run_with_options("benchmarks.streams", options))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / harness.CLOCK_TICKS


def main() -> None:
    """Read the streams that the file in the first argument describes."""
    import uvloop  # noqa: PLC0415 - only the reader process needs uvloop

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    options = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(asdict(uvloop.run(read_streams(**options)))))


if __name__ == "__main__":
    main()
