"""The documentation lists every setting, route, field, error, command and make target."""

import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import hdrs
from dotenv import dotenv_values
from pydantic import BaseModel

from groqchat.app import create_app
from groqchat.cli import main
from groqchat.http.errors import STATUS
from groqchat.models import (
    ChatRequest,
    ChatResponse,
    HistoryMessage,
    HistoryQuery,
    SessionsQuery,
)
from groqchat.runtime.runner import SHUTDOWN_TIMEOUT_S
from groqchat.settings import Settings
from groqchat.storage.embedded import SERVER_OPTIONS
from tests.support.docs import (
    PAGES,
    ROOT,
    anchors,
    is_message_of_code,
    links,
    name_of,
    quoted_messages,
    read,
    table,
)

API = "docs/api.md"
ENV_EXAMPLE = ROOT / ".env.example"
# aiohttp waits twice for connections to end.
CLOSE_WAITS = 2


def with_a_default(settings: type[BaseModel]) -> set[str]:
    """Return the names of the settings that have a value without configuration."""
    return {
        name for name, field in settings.model_fields.items() if field.default not in (None, (), "")
    }


def test_the_settings_page_lists_every_setting_with_its_default() -> None:
    rows = table("docs/settings.md", "## Settings")
    assert list(rows) == [name.upper() for name in Settings.model_fields]
    stated: dict[str, Any] = {
        name.lower(): row[0].strip("`") for name, row in rows.items() if row[0] != "none"
    }
    assert set(stated) == with_a_default(Settings)
    assert Settings(**stated).model_dump() == Settings().model_dump()


def test_the_env_example_lists_every_setting_with_its_default(tmp_path: Path) -> None:
    text = ENV_EXAMPLE.read_text(encoding="utf-8")
    uncommented = tmp_path / ".env"
    uncommented.write_text(
        re.sub(r"^# (?=[A-Z_]+=)", "", text, flags=re.MULTILINE), encoding="utf-8"
    )
    values = dotenv_values(uncommented)
    assert sorted(values) == sorted(name.upper() for name in Settings.model_fields)
    assert {name.lower() for name, value in values.items() if value} == with_a_default(Settings)
    assert Settings(_env_file=uncommented).model_dump() == Settings().model_dump()


def test_an_unchanged_copy_of_the_env_example_changes_no_setting() -> None:
    copied = Settings(_env_file=ENV_EXAMPLE)
    assert copied.model_fields_set == set()
    assert copied.with_local_defaults() == Settings().with_local_defaults()


def test_an_env_file_may_contain_comments_after_its_values(tmp_path: Path) -> None:
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
    assert settings.model_dump(include=settings.model_fields_set) == {
        "redis_host": "localhost",
        "redis_port": 6379,
        "redis_db": 0,
        "chat_history_ttl": 86400,
    }
    assert settings.redis_password is None


def test_the_api_page_lists_every_route() -> None:
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in create_app(Settings()).router.routes()
        if route.resource is not None and route.method != hdrs.METH_HEAD
    }
    assert set(table(API, "## Endpoints")) == routes


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("## Chat request", ChatRequest),
        ("## Chat response", ChatResponse),
        ("### History", HistoryMessage),
        ("## Pagination", HistoryQuery),
        ("## Pagination", SessionsQuery),
    ],
)
def test_the_api_page_lists_every_field(heading: str, model: type[BaseModel]) -> None:
    assert sorted(table(API, heading)) == sorted(model.model_fields)


def test_the_api_page_lists_every_error_with_its_status() -> None:
    stated = {
        (int(status), code)
        for status, (codes, _) in table(API, "## Errors").items()
        for code in re.findall(r"`(\w+)`", codes)
    }
    missing = {(status, error.code) for error, status in STATUS.items()} - stated
    assert missing == set()


def test_the_operations_page_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+)  ", capsys.readouterr().out, flags=re.MULTILINE)
    assert list(table("docs/operations.md", "## Commands")) == [
        f"groqchat {name}" for name in commands
    ]


def test_every_make_target_is_explained() -> None:
    targets = re.findall(r"^([a-z]+):.*## ", read("Makefile"), flags=re.MULTILINE)
    explained = re.findall(r"\bmake ([a-z]+)\b", read("README.md") + read("CONTRIBUTING.md"))
    assert "run" in targets
    assert set(targets) - set(explained) == set()


def test_every_quoted_message_is_one_of_the_code() -> None:
    messages = quoted_messages("docs/troubleshooting.md")
    assert len(messages) >= 10
    assert [message for message in messages if not is_message_of_code(message)] == []


def test_the_compose_file_lets_a_stopping_service_finish_its_turns() -> None:
    _, _, service = read("compose.yaml").partition("  groqchat:\n")
    period_s = re.findall(r"stop_grace_period: (\d+)s", service)[0]
    assert int(period_s) > Settings().shutdown_grace_s + CLOSE_WAITS * SHUTDOWN_TIMEOUT_S


@pytest.mark.parametrize(
    "option", ["appendonly", "appendfsync", "maxmemory-policy", "zset-max-listpack-value"]
)
def test_the_compose_file_configures_redis_like_the_embedded_server(option: str) -> None:
    assert re.search(rf"^ +{option} {SERVER_OPTIONS[option]}$", read("compose.yaml"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{path}#{anchor}")
    assert broken == []
