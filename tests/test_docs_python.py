"""Every example of docs/python.md runs as the page shows it and prints the output below it."""

import ast
import asyncio
import io
import json
import re
import runpy
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer
from redis.asyncio import Redis

from groqchat import RedisChatService
from groqchat.errors import HistoryUnavailable
from groqchat.settings import Settings
from tests.support.browser import BadNetwork
from tests.support.groq import MockGroq
from tests.support.service import environment

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
SERVICE_URL = "http://localhost:5000"
HISTORY_MODULE = "# chat_history.py\n"
APP_MODULE = "# app.py\n"
# The methods of the specification.
SEED_METHODS = {
    "save_message",
    "get_session_history",
    "clear_session",
    "get_session_size",
    "get_all_sessions",
    "get_session_info",
    "is_connected",
}
METHODS = SEED_METHODS | {
    "save_messages",
    "get_history_page",
    "get_sessions_page",
    "iter_history",
    "iter_sessions",
}
# The lifetimes of the sessions on the page, in seconds.
TTLS = (86400, 3600)
ANSWER = (
    "This is the mock Groq server, not a model. "
    'You said: "Explain machine learning". Messages received: 1.'
)


@dataclass(frozen=True)
class Example:
    """A code block, and the output that the page shows below it."""

    code: str
    output: str

    @property
    def is_module(self) -> bool:
        return self.code.startswith((HISTORY_MODULE, APP_MODULE))

    @property
    def is_program(self) -> bool:
        return "asyncio.run(" in self.code

    @property
    def is_http_client(self) -> bool:
        return SERVICE_URL in self.code


EXAMPLES = [
    Example(*block)
    for block in re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", PAGE, re.DOTALL)
]
SNIPPETS = [
    each for each in EXAMPLES if not (each.is_module or each.is_program or each.is_http_client)
]
PROGRAMS = [each for each in EXAMPLES if each.is_program and not each.is_http_client]
SEED_CLIENT, ERROR_CLIENT, STREAM_CLIENT = (each for each in EXAMPLES if each.is_http_client)
(CHAT_HISTORY,) = (each.code for each in EXAMPLES if each.code.startswith(HISTORY_MODULE))
(APP,) = (each.code for each in EXAMPLES if each.code.startswith(APP_MODULE))

RunProgram = Callable[..., Awaitable[str]]


def stable(output: str) -> str:
    """Replace the parts of an output that differ between two runs."""
    output = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", "<time>", output)
    output = re.sub(r"\b[0-9a-f]{17}\b", "<message id>", output)
    return re.sub(r"\b\d{4,5}\b", _steady_ttl, output)


def _steady_ttl(seconds: re.Match[str]) -> str:
    """Return the full TTL for the remaining seconds of a session that was saved moments ago."""
    return next((f"{ttl}" for ttl in TTLS if 0 <= ttl - int(seconds[0]) < 60), seconds[0])


async def execute(code: str, names: dict[str, Any]) -> str:
    """Execute a snippet with top-level `await` in a namespace and return its output."""
    compiled = compile(code, "python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with redirect_stdout(io.StringIO()) as output:
        await FunctionType(compiled, names)()
    return output.getvalue()


@pytest.fixture
def modules(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the modules of the page, for an empty database."""
    (tmp_path / "chat_history.py").write_text(CHAT_HISTORY, encoding="utf-8")
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("chat_history", None)


@pytest.fixture
def run(modules: Path, redis_url: str) -> RunProgram:
    """Run a program next to the modules of the page and return its output."""

    async def run(code: str) -> str:
        (modules / "main.py").write_text(code, encoding="utf-8")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "main.py",
            cwd=modules,
            env=environment(REDIS_URL=redis_url),
            stdout=PIPE,
            stderr=PIPE,
        )
        printed, problems = await process.communicate()
        assert process.returncode == 0, problems.decode()
        return printed.decode()

    return run


def test_every_example_has_a_test() -> None:
    modules = [each for each in EXAMPLES if each.is_module]
    assert [each.output for each in modules] == ["", ""]
    assert len(EXAMPLES) == len(SNIPPETS) + len(PROGRAMS) + len(modules) + 3
    assert [each for each in (*SNIPPETS, *PROGRAMS) if not each.output] == []


def test_the_page_explains_and_uses_every_method() -> None:
    public = {name for name in dir(RedisChatService) if not name.startswith("_")}
    assert METHODS - public == set()
    assert set(re.findall(r"^\| `(\w+)\(.*?\)` \|", PAGE, flags=re.MULTILINE)) == METHODS
    code = "".join(each.code for each in EXAMPLES)
    assert {name for name in METHODS if f"history.{name}(" in code} == METHODS


async def test_the_snippets_print_the_output_on_the_page(modules: Path) -> None:
    names = runpy.run_path(str(modules / "chat_history.py"))
    async with names["open_history"](Settings()) as history:
        names["history"] = history
        printed = [stable(await execute(each.code, names)) for each in SNIPPETS]
    assert printed == [stable(each.output) for each in SNIPPETS]


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
async def test_a_program_prints_the_output_on_the_page(index: int, run: RunProgram) -> None:
    assert await run(PROGRAMS[index].code) == PROGRAMS[index].output


async def test_the_program_with_a_task_group_saves_every_message(
    run: RunProgram, redis: Redis
) -> None:
    (program,) = (each for each in PROGRAMS if "TaskGroup" in each.code)
    await run(program.code)
    sizes = [await redis.zcard(f"chat:session:import-{number}") for number in range(10)]
    assert sizes == [100] * 10


async def test_the_application_returns_the_messages_of_a_session(modules: Path) -> None:
    app = runpy.run_path(str(modules / "app.py"))
    async with app["open_history"](Settings()) as history:
        await execute(SNIPPETS[0].code, {"history": history})
    async with TestClient(TestServer(app["create_app"]())) as client:
        response = await client.get("/messages/user-123")
        assert response.status == 200
        assert await response.json() == [
            ["user", "What is Python?"],
            ["assistant", "A programming language."],
        ]


async def test_the_aiohttp_example_rejects_an_invalid_session_id(modules: Path) -> None:
    app: web.Application = runpy.run_path(str(modules / "app.py"))["create_app"]()
    async with TestClient(TestServer(app)) as client:
        response = await client.get("/messages/not%20valid")
        text = await response.text()
    assert response.status == 422
    assert text.startswith("session_id: must have 1 to 128 characters")


async def test_the_application_returns_503_if_redis_is_unavailable(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://localhost:1")
    app: web.Application = runpy.run_path(str(modules / "app.py"))["create_app"]()
    async with TestClient(TestServer(app)) as client:
        response = await client.get("/messages/user-123")
        assert response.status == 503
        assert await response.text() == HistoryUnavailable.default_message


async def test_the_example_of_the_seed_chats_and_lists(api: ClientSession, run: RunProgram) -> None:
    printed = await run(SEED_CLIENT.code.replace(SERVICE_URL, str(api._base_url).rstrip("/")))
    answer, *history, sessions = printed.splitlines()
    assert ast.literal_eval(answer)["message"] == ANSWER
    messages = json.loads("".join(history))["messages"]
    assert [message["content"] for message in messages] == ["Explain machine learning", ANSWER]
    assert ast.literal_eval(sessions) == {
        "sessions": ["user-demo-001"],
        "total_sessions": 1,
        "has_more": False,
        "first_id": "user-demo-001",
        "last_id": "user-demo-001",
        "next": None,
    }


@pytest.mark.parametrize("example", [ERROR_CLIENT, STREAM_CLIENT], ids=["errors", "stream"])
async def test_an_http_client_prints_the_output_on_the_page(
    example: Example, api: ClientSession, run: RunProgram
) -> None:
    url = str(api._base_url).rstrip("/")
    assert await run(example.code.replace(SERVICE_URL, url)) == example.output


async def test_the_client_of_a_stream_continues_after_a_lost_connection(
    api: ClientSession, groq: MockGroq, run: RunProgram
) -> None:
    groq.options.chunk_ms = 20
    assert api._base_url is not None
    network = BadNetwork(api._base_url, cuts=[b"id: 4\n"])
    async with network.open() as url:
        printed = await run(STREAM_CLIENT.code.replace(SERVICE_URL, str(url).rstrip("/")))
    assert printed == STREAM_CLIENT.output
    assert network.last_event_ids == ["3"]
