"""The settings of the commands: options, sources, warnings, and what `check` prints."""

import re
from pathlib import Path

import pytest
import requests

from groqchat.cli import main
from tests.support.service import Service, run_groqchat

UNREACHABLE = "redis://127.0.0.1:9"


def test_check_prints_the_settings_without_secrets_and_tests_each_dependency(
    directory: Path, redis_url: str
) -> None:
    good = run_groqchat(
        "check",
        cwd=directory,
        REDIS_URL=redis_url,
        REDIS_PASSWORD="hunter2",
        GROQ_API_KEY="gsk_hunter2",
        GROQ_BASE_URL="offline:",
    )
    bad = run_groqchat("check", cwd=directory, REDIS_URL=UNREACHABLE)

    assert good.returncode == 0, good.stdout + good.stderr
    assert "CHAT_HISTORY_TTL=86400" in good.stdout
    assert "GROQ_API_KEY=**********" in good.stdout
    assert "hunter2" not in good.stdout + good.stderr
    assert re.search(r"Redis: ok at unix://\S+, 0 session\(s\)\nGroq: ok at offline:", good.stdout)
    assert bad.returncode == 1
    assert "Redis: FAILED: ConnectionError" in bad.stdout
    assert "Groq: FAILED: GROQ_API_KEY is not set" in bad.stdout


def test_check_names_the_env_file_the_sources_and_the_address_of_redis(directory: Path) -> None:
    (directory / ".env").write_text("REDIS_URL=redis://user:hunter2@127.0.0.1:9/3\nREDIS_DBB=1\n")
    result = run_groqchat("check", cwd=directory, GROQ_BASE_URL="offline:", PORT="5001")
    lines = result.stdout.splitlines()
    assert lines[0] == f"# .env: {(directory / '.env').resolve()}"
    assert "REDIS_URL=redis://**********@127.0.0.1:9/3  # .env" in lines
    assert "PORT=5001  # environment" in lines
    assert "HOST=127.0.0.1" in lines
    assert "REDIS_DBB in .env has no effect: did you mean REDIS_DB?" in result.stderr
    assert "hunter2" not in result.stdout + result.stderr

    (directory / ".env").unlink()
    lines = run_groqchat("check", "--local", cwd=directory).stdout.splitlines()
    assert lines[0] == f"# .env: none in {directory.resolve()}"
    assert "REDIS_URL=embedded:.data/redis  # --local" in lines
    assert "GROQ_BASE_URL=offline:?chunk_ms=20  # --local" in lines


def test_each_line_of_the_env_file_that_is_no_setting_is_reported_once(directory: Path) -> None:
    (directory / ".env").write_text("REDIS_URL=memory:\nno setting\nPORT=1\nno setting either\n")
    checked = run_groqchat("check", cwd=directory, GROQ_BASE_URL="offline:")
    assert checked.returncode == 0
    reported = [line for line in checked.stderr.splitlines() if "python-dotenv" in line]
    assert [line.partition(" WARNING groqchat [-] ")[2] for line in reported] == [
        ".env: python-dotenv could not parse statement starting at line 2",
        ".env: python-dotenv could not parse statement starting at line 4",
    ]
    failed = run_groqchat("serve", cwd=directory, WORKERS="no")
    assert failed.stderr.splitlines() == [
        "groqchat: WORKERS: must be a whole number",
        ".env: python-dotenv could not parse statement starting at line 2",
        ".env: python-dotenv could not parse statement starting at line 4",
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_options_of_serve_override_the_environment(directory: Path, workers: str) -> None:
    (directory / ".env").write_text("HOST=127.0.0.2\n")
    options = ("--host", "127.0.0.1", "--port", "0", "--workers", workers)
    with Service(
        directory, *options, "--local", HOST="127.0.0.3", PORT="1", WORKERS="3"
    ) as service:
        assert service.url.startswith("http://127.0.0.1:")
        assert requests.get(f"{service.url}/readyz", timeout=30).status_code == 200
        assert service.terminate() == 0


def test_an_invalid_option_of_serve_is_an_error_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--port", "99999", "--workers", "no", "--host", ""]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "groqchat: HOST: must not be empty",
        "PORT: must be at most 65535",
        "WORKERS: must be a whole number",
    ]


def test_without_configuration_serve_mentions_the_option_local(directory: Path) -> None:
    with Service(directory, REDIS_PORT="9") as service:
        url = f"{service.url}/api/groq-chat/chat"
        failed = requests.post(url, json={"message": "Hello"}, timeout=30)
        assert (
            "[Groq] WARNING: GROQ_API_KEY is not set; chat requests return 503. "
            "`groqchat serve --local` needs no key and no Redis." in service.log
        )
    assert failed.json()["error"]["message"] == (
        "The service has no API key for Groq. Set GROQ_API_KEY, or start the service with --local "
        "to use the mock Groq server."
    )


def test_each_misspelled_variable_is_logged_once(directory: Path) -> None:
    with Service(
        directory, "--local", "--workers", "2", REDIS_PASWORD="hunter2", STREAM_STALL_S="3"
    ) as service:
        service.terminate()
        log = service.log
    assert (
        log.count("REDIS_PASWORD in the environment has no effect: did you mean REDIS_PASSWORD?")
        == 1
    )
    assert log.count("the setting is now named STREAM_WRITE_TIMEOUT_S") == 1
    assert "hunter2" not in log
