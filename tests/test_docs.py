"""What the documentation says is so: settings, routes, errors, commands, examples, links."""

import argparse
import ast
import asyncio
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, hdrs
from dotenv import dotenv_values
from pydantic import BaseModel
from yarl import URL

from groqchat.app import create_app
from groqchat.cli import main
from groqchat.http.errors import STATUS
from groqchat.models import ChatAnswer, ChatRequest, HistoryQuery, SessionsQuery
from groqchat.server import CLOSE_TIMEOUT_S
from groqchat.settings import Settings
from groqchat.storage.embedded import SERVER_OPTIONS
from tests.conftest import Serve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
ENV_EXAMPLE = ROOT / ".env.example"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

SERVICE_URL = "http://localhost:5000"
# aiohttp waits twice for connections to end.
CLOSE_WAITS = 2

# What differs from one run of an example to the next.
VOLATILE = {
    "<time>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00",
    "<request id>": r"\b[0-9a-f]{32}\b",
    "<message id>": r"\b[0-9a-f]{17}\b",
}


def section(heading: str) -> str:
    """Return the README's text from a heading to the next one of any level."""
    return re.split(r"^#+ .*\n", README.partition(f"\n{heading}\n")[2], flags=re.MULTILINE)[0]


def table(heading: str) -> dict[str, list[str]]:
    """Return the last table under a heading: by each row's first cell, the others."""
    *_, text = [part for part in section(heading).strip().split("\n\n") if part.startswith("|")]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


PYTHON_EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def with_a_default(settings: type[BaseModel]) -> set[str]:
    """Return the names of those settings that are something without being set."""
    return {
        name for name, field in settings.model_fields.items() if field.default not in (None, ())
    }


def steady(text: str) -> object:
    """Return a JSON answer with what differs between runs replaced."""
    for name, pattern in VOLATILE.items():
        text = re.sub(pattern, name, text)
    return json.loads(text)


async def output(*command: str) -> str:
    """Run a command, proxies aside, and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "NO_PROXY": "*"}
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode()


@pytest.fixture
async def url(serve: Serve) -> str:
    """Where a service runs as `make run` sets it up, over an empty database."""
    api: ClientSession = await serve(groq_base_url="offline:", groq_api_key=None)
    return str((await api.get("/healthz")).url.origin())


def test_the_readme_has_every_setting_with_its_default() -> None:
    rows = table("## Settings")
    assert list(rows) == [name.upper() for name in Settings.model_fields]
    stated: dict[str, Any] = {
        name.lower(): row[0].strip("`") for name, row in rows.items() if row[0] != "none"
    }
    assert set(stated) == with_a_default(Settings)
    assert Settings(**stated).model_dump() == Settings().model_dump()


def test_the_env_example_has_every_setting_at_its_default(tmp_path: Path) -> None:
    text = ENV_EXAMPLE.read_text(encoding="utf-8")
    in_force = tmp_path / ".env"
    in_force.write_text(re.sub(r"^# (?=[A-Z_]+=)", "", text, flags=re.MULTILINE), encoding="utf-8")
    values = dotenv_values(in_force)
    assert sorted(values) == sorted(name.upper() for name in Settings.model_fields)
    assert {name.lower() for name, value in values.items() if value} == with_a_default(Settings)
    assert Settings(_env_file=in_force).model_dump() == Settings().model_dump()


def test_the_env_example_copied_as_it_is_changes_nothing() -> None:
    copied = Settings(_env_file=ENV_EXAMPLE)
    assert copied.model_fields_set == set()
    assert copied.with_local_defaults() == Settings().with_local_defaults()


def test_an_env_file_may_have_comments_behind_its_values(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(
        "# Redis Configuration\n"
        "REDIS_HOST=localhost\n"
        "REDIS_PORT=6379\n"
        "REDIS_DB=0\n"
        "REDIS_PASSWORD=                    # Leave empty if no password\n"
        "CHAT_HISTORY_TTL=86400             # 24 hours (in seconds)\n",
        encoding="utf-8",
    )
    settings = Settings(_env_file=env_file)
    assert settings.model_fields_set == {
        "redis_host",
        "redis_port",
        "redis_db",
        "chat_history_ttl",
    }
    assert settings.redis_host == "localhost"
    assert settings.redis_port == 6379
    assert settings.redis_db == 0
    assert settings.redis_password is None
    assert settings.chat_history_ttl == 86400


def test_the_readme_has_every_route() -> None:
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in create_app(Settings()).router.routes()
        if route.resource is not None and route.method != hdrs.METH_HEAD
    }
    assert set(table("## API")) == routes


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("### A message", ChatRequest),
        ("### The answer", ChatAnswer),
        ("### Paging", HistoryQuery),
        ("### Paging", SessionsQuery),
    ],
)
def test_the_readme_has_every_field(heading: str, model: type[BaseModel]) -> None:
    assert sorted(table(heading)) == sorted(model.model_fields)


def test_the_readme_has_every_error_with_its_status() -> None:
    stated = {
        (int(status), code)
        for status, (codes, _) in table("### Errors").items()
        for code in re.findall(r"`(\w+)`", codes)
    }
    missing = {(status, kind.code) for kind, status in STATUS.items()} - stated
    assert missing == set()


def test_the_readme_has_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+)  ", capsys.readouterr().out, flags=re.MULTILINE)
    assert list(table("## Commands")) == [f"groqchat {name}" for name in commands]


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):.*## ", makefile, flags=re.MULTILINE)
    named = set(re.findall(r"\bmake ([a-z]+)\b", README + CONTRIBUTING))
    assert "run" in targets
    assert set(targets) - named == set()


async def ask_like_curl(command: str) -> str:
    """Do what a curl command of the README asks for, also where there is no curl."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="header")
    parser.add_argument("-d", dest="data")
    parser.add_argument("url")
    asked = parser.parse_args(shlex.split(command.replace("\\\n", " "))[1:])
    name, _, value = (asked.header or "Accept: */*").partition(": ")
    method = asked.method or ("POST" if asked.data else "GET")
    async with ClientSession() as client:
        target = URL(asked.url, encoded=True)
        async with client.request(
            method, target, data=asked.data, headers={name: value}
        ) as response:
            return await response.text()


async def test_the_examples_answer_as_the_readme_shows(url: str) -> None:
    examples = re.findall(
        r"```sh\n(curl [^`]*)```\n\n```json\n([^`]*)```", README, flags=re.MULTILINE
    )
    assert len(examples) == 6
    for command, shown in examples:
        answer = await ask_like_curl(command.replace(SERVICE_URL, url))
        assert steady(answer) == steady(shown), command


async def test_the_python_example_chats_and_lists(url: str) -> None:
    example, _ = PYTHON_EXAMPLES
    printed = await output(sys.executable, "-c", example.replace(SERVICE_URL, url))
    answer, *history, sessions = printed.splitlines()
    spoken = (
        "This is the offline stand-in, not a model. "
        'You said: "Explain machine learning". Messages I was given: 1.'
    )
    assert ast.literal_eval(answer)["message"] == spoken
    messages = json.loads("".join(history))["messages"]
    assert [message["content"] for message in messages] == ["Explain machine learning", spoken]
    assert ast.literal_eval(sessions) == {
        "sessions": ["user-demo-001"],
        "total_sessions": 1,
        "has_more": False,
        "first_id": "user-demo-001",
        "last_id": "user-demo-001",
        "next": None,
    }


async def test_the_example_for_other_clients_keeps_its_conversation(url: str) -> None:
    _, example = PYTHON_EXAMPLES
    printed = await output(sys.executable, "-c", example.replace(SERVICE_URL, url))
    assert printed.strip().endswith("Messages I was given: 1.")
    printed = await output(sys.executable, "-c", example.replace(SERVICE_URL, url))
    assert "You said:" in printed


def test_the_compose_file_gives_a_stopping_service_its_time() -> None:
    (period_s,) = re.findall(r"stop_grace_period: (\d+)s", COMPOSE)
    assert int(period_s) > Settings().shutdown_grace_s + CLOSE_WAITS * CLOSE_TIMEOUT_S


@pytest.mark.parametrize(
    "option", ["appendonly", "appendfsync", "maxmemory-policy", "zset-max-listpack-value"]
)
def test_the_compose_file_sets_redis_up_as_the_embedded_server_is(option: str) -> None:
    assert f"--{option} {SERVER_OPTIONS[option]}\n" in COMPOSE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    relative = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in relative if not (page.parent / link).exists()] == []
