"""The commands of groqchat, run as processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from groqchat.cli import main
from tests.support.redis_servers import RedisServer
from tests.support.service import Service, environment, run_groqchat

UNREACHABLE = "redis://127.0.0.1:9"


def chat(url: str, message: str, **headers: str) -> Any:
    response = requests.post(
        f"{url}/api/groq-chat/chat",
        json={"message": message, "session_id": "s"},
        headers=headers,
        timeout=30,
    )
    assert response.status_code == 200, response.text
    return response.json()


def contents(url: str) -> list[str]:
    response = requests.get(f"{url}/api/groq-chat/history/s", timeout=30)
    return [message["content"] for message in response.json()["messages"]]


def test_serve_local_logs_the_addresses_of_redis_and_groq(directory: Path) -> None:
    with Service(directory, "--local") as service:
        assert re.search(r"\[Redis Chat\] Connected to Redis at embedded:.data/redis", service.log)
        assert re.search(
            r"\[Groq\] offline: completions come from the mock Groq server at http://127.0.0.1:\d+",
            service.log,
        )
        assert chat(service.url, "Hello")["history_saved"] is True


def test_the_history_survives_sigterm_and_sigkill(directory: Path) -> None:
    stored: list[str] = []
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        with Service(directory, "--local") as service:
            assert contents(service.url) == stored
            message = f"sent before signal {number:d}"
            stored += [message, chat(service.url, message)["message"]]
            service.signal(number)
            assert service.wait() == (0 if number == signal.SIGTERM else -number)
    with Service(directory, "--local") as service:
        assert contents(service.url) == stored
        assert "stopping the server of an earlier service" in service.log
        assert service.terminate() == 0


def test_after_ctrl_c_a_running_turn_completes_before_the_exit(directory: Path) -> None:
    with Service(directory, "--local", GROQ_BASE_URL="offline:?latency_ms=1000") as service:
        answers: list[Any] = []
        client = threading.Thread(target=lambda: answers.append(chat(service.url, "Hello")))
        client.start()
        while not contents(service.url):
            pass
        # For Ctrl-C, a terminal sends SIGINT to every process of the group.
        os.killpg(service._process.pid, signal.SIGINT)
        client.join(timeout=30)
        assert service.wait() == 0
    assert answers[0]["history_saved"] is True
    with Service(directory, "--local") as service:
        assert contents(service.url) == ["Hello", answers[0]["message"]]


# Imports the service as the command does, and receives Ctrl-C at the import of aiohttp.
INTERRUPTED = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "aiohttp":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from groqchat.__main__ import run
sys.exit(run())
"""


def test_ctrl_c_during_the_start_causes_no_traceback(directory: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "serve"],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_a_second_service_on_an_embedded_directory_fails_with_a_clear_message(
    directory: Path,
) -> None:
    with Service(directory, "--local") as service:
        second = run_groqchat("serve", "--local", cwd=directory, PORT="0")
        assert second.returncode == 1
        assert f"another groqchat service (pid {service._process.pid}) uses" in second.stderr
        assert "Traceback" not in second.stderr


@pytest.mark.parametrize("redis_url", [UNREACHABLE, "memory:", "embedded:data"])
def test_a_port_in_use_is_an_error_without_a_traceback(directory: Path, redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run_groqchat(
            "serve", cwd=directory, PORT=str(port), REDIS_URL=redis_url, GROQ_BASE_URL="offline:"
        )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last == f"groqchat: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_the_mock_groq_server_needs_a_free_port(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run_groqchat("offline", "--port", str(port), cwd=directory)
    assert result.stderr.splitlines() == [
        f"groqchat: cannot listen on 127.0.0.1:{port}: Address already in use"
    ]


def test_every_invalid_setting_is_named(directory: Path) -> None:
    result = run_groqchat("serve", cwd=directory, PORT="lots", REDIS_DB="-1")
    assert result.returncode == 1
    assert "PORT: " in result.stderr
    assert "REDIS_DB: " in result.stderr
    assert "Traceback" not in result.stderr


def test_an_invalid_mock_option_in_the_url_is_an_error_without_a_traceback(directory: Path) -> None:
    result = run_groqchat(
        "serve", cwd=directory, PORT="0", REDIS_URL="memory:", GROQ_BASE_URL="offline:?fail=nope"
    )
    assert result.returncode == 1
    assert "groqchat: --fail: must be '400', '401'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_sampled_access_log_contains_every_server_error(directory: Path) -> None:
    with Service(
        directory,
        REDIS_URL="memory:",
        GROQ_API_KEY="",
        ACCESS_LOG="true",
        ACCESS_LOG_SAMPLE_RATE="0",
    ) as service:
        requests.get(f"{service.url}/api/groq-chat/sessions", timeout=30)
        requests.post(f"{service.url}/api/groq-chat/chat", json={"message": "Hello"}, timeout=30)
        service.wait_for(r"aiohttp.access \[[0-9a-f]{32}\] .* /api/groq-chat/chat 503 ")
    assert service.log.count("aiohttp.access") == 1


def test_settings_are_read_from_an_env_file_in_the_working_directory(directory: Path) -> None:
    (directory / ".env").write_text("REDIS_URL=memory:\nGROQ_BASE_URL=offline:\n")
    with Service(directory) as service:
        assert (
            "[Redis Chat] WARNING: with REDIS_URL=memory:, messages are lost when this process ends"
            in service.log
        )
        assert chat(service.url, "Hello")["history_saved"] is True


def test_reindex_lists_the_sessions_of_another_service(
    directory: Path, real_servers: dict[str, RedisServer]
) -> None:
    database = 4000
    member = json.dumps({"role": "user", "content": "Hello", "model": "m", "timestamp": "t"})
    with real_servers["valkey"].client(database) as client:
        for number in range(2500):
            client.zadd(f"chat:session:user-{number}", {member: 1.7e9})
        client.zadd("chat:session:has space", {member: 1.7e9})
    url = real_servers["valkey"].url(database)

    result = run_groqchat("reindex", cwd=directory, REDIS_URL=url)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "2500 session(s) listed",
        "1 key(s) skipped: their session ids are not valid in the API",
    ]
    with Service(directory, REDIS_URL=url, GROQ_BASE_URL="offline:") as service:
        listed = requests.get(f"{service.url}/api/groq-chat/sessions", timeout=30).json()
    assert (listed["total_sessions"], len(listed["sessions"])) == (2500, 1000)


def test_check_and_reindex_work_while_the_service_runs(directory: Path) -> None:
    with Service(directory, "--local") as service:
        chat(service.url, "Hello")
        check = run_groqchat("check", "--local", cwd=directory)
        reindex = run_groqchat("reindex", "--local", cwd=directory)
        assert (check.returncode, reindex.returncode) == (0, 0), check.stdout + reindex.stderr
        assert "Redis: ok at embedded:.data/redis, 1 session(s)" in check.stdout
        assert reindex.stdout == "1 session(s) listed\n"
        assert len(contents(service.url)) == 2


def test_reindex_without_redis_is_an_error_without_a_traceback(directory: Path) -> None:
    result = run_groqchat("reindex", cwd=directory, REDIS_URL=UNREACHABLE)
    assert result.returncode == 1
    assert "groqchat: The chat history is unavailable at the moment." in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_or_unknown_command_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["dance"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "usage: groqchat" in capsys.readouterr().err


def test_the_version_is_printed(directory: Path) -> None:
    result = run_groqchat("--version", cwd=directory)
    assert re.fullmatch(r"groqchat \d+\.\d+\.\d+\n", result.stdout)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        pytest.param(
            "::1",
            "[::1]",
            marks=pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6"),
        ),
    ],
)
def test_the_mock_groq_server_runs_alone(directory: Path, host: str, shown: str) -> None:
    options = ("--host", host, "--port", "0", "--fail", "503")
    command = [sys.executable, "-m", "groqchat", "offline", *options]
    with subprocess.Popen(
        command, cwd=directory, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.removeprefix("the mock Groq server answers at ").strip()
        assert url.startswith(f"http://{shown}:")
        key = {"Authorization": "Bearer any"}
        body = {"model": "openai/gpt-oss-20b", "messages": [{"role": "user", "content": "Hi"}]}
        listed = requests.get(f"{url}/openai/v1/models", headers=key, timeout=30)
        failed = requests.post(
            f"{url}/openai/v1/chat/completions", json=body, headers=key, timeout=30
        )
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert (listed.status_code, failed.status_code) == (200, 503)


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--fail", "999", "must be '400', '401'"),
        ("--latency-ms", "long", "must be a number\n"),
        ("--port", "99999", "must be at most 65535\n"),
        ("--port", "-5", "must be at least 0\n"),
        ("--port", "lots", "must be a whole number\n"),
        ("--host", "", "must not be empty\n"),
        ("--host", "a..b", "must be a host name or an IP address, without a port\n"),
    ],
)
def test_an_invalid_option_of_the_mock_groq_server_is_rejected(
    capsys: pytest.CaptureFixture[str], option: str, value: str, rule: str
) -> None:
    assert main(["offline", option, value]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"groqchat: {option}: {rule}")
    assert printed.count("\n") == 1
