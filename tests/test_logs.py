"""The log: text for people, or one JSON object in each line."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from groqchat.cli import main
from groqchat.http.request_id import request_id
from groqchat.runtime.logs import configure_logging
from tests.support.service import Service, run_groqchat

# The message of python-dotenv for the second line of a file.
UNPARSED = "python-dotenv could not parse statement starting at line 2"


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Restore the configuration of logging after a test."""
    root = logging.getLogger()
    saved = root.level, root.handlers[:], sys.excepthook
    yield
    logging.captureWarnings(capture=False)
    root.level, root.handlers, sys.excepthook = saved


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_json_line_contains_time_level_logger_request_id_and_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("INFO", "json")
    before = datetime.now(UTC)
    token = request_id.set("my-id")
    logging.getLogger("groqchat").info("Hello %s\nü \ud83d", "you")
    request_id.reset(token)
    (line,) = lines_of(capsys.readouterr().err)
    time = datetime.fromisoformat(line.pop("timestamp"))
    assert before <= time <= datetime.now(UTC)
    assert time.utcoffset() is not None
    assert line == {
        "level": "INFO",
        "logger": "groqchat",
        "request_id": "my-id",
        "message": "Hello you\nü ?",
    }


def test_an_exception_is_a_string_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    try:
        raise ValueError("two\nlines")  # noqa: TRY301 - the test needs a traceback
    except ValueError as error:
        logging.getLogger("groqchat").exception("failed")
        sys.excepthook(type(error), error, error.__traceback__)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("a warning", stacklevel=1)
    first, crash, warning = lines_of(capsys.readouterr().err)
    assert (first["level"], first["message"]) == ("ERROR", "failed")
    assert first["exception"].startswith("Traceback (most recent call last):\n")
    assert first["exception"].endswith("ValueError: two\nlines")
    assert (crash["level"], crash["message"]) == ("CRITICAL", "groqchat ended unexpectedly")
    assert crash["exception"] == first["exception"]
    assert (warning["logger"], warning["level"]) == ("py.warnings", "WARNING")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_with_json_every_line_of_the_log_is_an_object(directory: Path, workers: str) -> None:
    with Service(
        directory, "--local", "--workers", workers, LOG_FORMAT="JSON", ACCESS_LOG="true"
    ) as service:
        url = f"{service.url}/api/groq-chat/simple-chat"
        answer = requests.post(
            url,
            params={"message": "my-secret", "session_id": "s"},
            headers={"X-Request-ID": "id-1", "Authorization": "Bearer my-secret"},
            timeout=30,
        )
        service.wait_for('"status":200')
        assert service.terminate() == 0
        service.read_to_end()
    assert "my-secret" not in service.log
    lines = lines_of(service.log)
    for line in lines:
        assert {"timestamp", "level", "logger", "request_id", "message"} <= set(line)
    (access,) = [line for line in lines if line["logger"] == "aiohttp.access"]
    assert datetime.fromisoformat(access.pop("timestamp")) < datetime.now(UTC)
    ms, size = access.pop("ms"), access["bytes"]
    assert ms > 0
    assert size > len(answer.content)
    assert access == {
        "level": "INFO",
        "logger": "aiohttp.access",
        "request_id": "id-1",
        "message": f"127.0.0.1 POST /api/groq-chat/simple-chat 200 {size} bytes {ms} ms",
        "remote": "127.0.0.1",
        "method": "POST",
        "path": "/api/groq-chat/simple-chat",
        "status": 200,
        "bytes": size,
    }


def test_the_text_of_the_access_log_is_readable_and_stays_in_its_line(directory: Path) -> None:
    with Service(
        directory, REDIS_URL="memory:", GROQ_BASE_URL="offline:", ACCESS_LOG="true"
    ) as service:
        requests.get(f"{service.url}/nope%0Afake%20line", timeout=30)
        service.wait_for(
            r" INFO aiohttp\.access \[[0-9a-f]{32}\] 127\.0\.0\.1 GET /nope%0Afake%20line 404 "
            r"\d+ bytes \d+\.\d ms\n"
        )


def test_with_json_a_failed_start_is_an_object_too(directory: Path) -> None:
    result = run_groqchat(
        "serve", cwd=directory, LOG_FORMAT="json", REDIS_URL="memory:", WORKERS="2"
    )
    assert result.returncode == 1
    last = lines_of(result.stderr)[-1]
    assert (last["level"], last["message"]) == (
        "CRITICAL",
        "REDIS_URL=memory: cannot be shared by workers: set WORKERS=1",
    )


def test_with_json_a_line_of_the_env_file_that_is_no_setting_is_reported_in_one_object(
    directory: Path,
) -> None:
    (directory / ".env").write_text("# a comment\nno setting\nREDIS_URL=memory:\n")
    with Service(directory, LOG_FORMAT="json", GROQ_BASE_URL="offline:") as service:
        assert service.terminate() == 0
        service.read_to_end()
    assert [
        (line["level"], line["logger"], line["message"])
        for line in lines_of(service.log)
        if "python-dotenv" in line["message"]
    ] == [("WARNING", "groqchat", f".env: {UNPARSED}")]


def test_an_unknown_log_format_is_rejected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_FORMAT", "xml")
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "groqchat: LOG_FORMAT: must be 'text' or 'json'\n"
