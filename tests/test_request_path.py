"""The path of a request through the modules, as docs/architecture.md describes it."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest
from aiohttp import ClientSession

from tests.support.api import BASE

SOURCE = str(Path(__file__).parent.parent / "src" / "groqchat") + "/"
MODEL = "openai/gpt-oss-20b"
# With more modules, a reader loses track. The limits are today's numbers.
MAX_MODULES = {"chat": 26, "stream": 37, "openai": 29}

# A timer may call these during any request.
OF_TIMERS = {"runtime/connections.py", "storage/index_pruner.py"}


@dataclass
class RequestPath:
    """The modules whose functions ran, and the calls that returned to a module further up."""

    modules: set[str] = field(default_factory=set)
    returns: set[str] = field(default_factory=set)

    def record(self, frame: FrameType, event: str, _argument: object) -> None:
        module = module_of(frame)
        if event != "call" or module is None:
            return
        self.modules.add(module)
        callers = list(callers_of(frame))
        if callers and callers[0] != module and module in callers:
            self.returns.add(f"{callers[0]} -> {module}: {frame.f_code.co_qualname}")


def module_of(frame: FrameType) -> str | None:
    """Return the module of a frame, None outside of the package and in the mock Groq server."""
    name = frame.f_code.co_filename
    if not name.startswith(SOURCE) or name.startswith(f"{SOURCE}offline/"):
        return None
    module = name.removeprefix(SOURCE)
    return None if module in OF_TIMERS else module


def callers_of(frame: FrameType) -> Iterator[str]:
    caller = frame.f_back
    while caller is not None:
        module = module_of(caller)
        if module is not None:
            yield module
        caller = caller.f_back


@contextmanager
def recorded() -> Iterator[RequestPath]:
    path = RequestPath()
    before = sys.getprofile()
    sys.setprofile(path.record)
    try:
        yield path
    finally:
        sys.setprofile(before)


async def send(api: ClientSession, kind: str) -> None:
    """Send one request of a kind and read the whole response."""
    if kind == "openai":
        body: dict[str, object] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Hello"}],
        }
        url, headers = "/openai/v1/chat/completions", {"X-Session-Id": "openai"}
    else:
        body = {"message": "Hello", "session_id": kind, "model": MODEL, "stream": kind == "stream"}
        url, headers = f"{BASE}/chat", {}
    async with api.post(url, json=body, headers=headers) as response:
        await response.read()
        assert response.status == 200


async def wait_until_recorded(path: RequestPath, module: str) -> None:
    async with asyncio.timeout(10):
        while module not in path.modules:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", MAX_MODULES)
async def test_a_request_passes_few_modules_and_returns_to_none(
    api: ClientSession, kind: str
) -> None:
    # The first request opens connections and fills caches.
    await send(api, kind)
    paths = []
    # Background tasks may run during one of them, for example just after the start.
    for _ in range(3):
        with recorded() as path:
            await send(api, kind)
            if kind == "stream":
                # A background task writes the events to Redis.
                await wait_until_recorded(path, "storage/event_log.py")
        paths.append(path)
    path = min(paths, key=lambda each: len(each.modules))
    assert path.returns == set()
    assert len(path.modules) <= MAX_MODULES[kind], sorted(path.modules)
    assert "storage/command_batcher.py" in path.modules
