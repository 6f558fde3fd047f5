"""Several workers on one port, and their supervisor."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from pydantic import SecretStr

from groqchat.cli import main
from groqchat.errors import ConfigurationError
from groqchat.runtime import workers
from groqchat.runtime.workers import decode_settings, encode_settings, reserved_port
from groqchat.settings import Settings
from tests.support.processes import is_alive, wait_until, workers_of
from tests.support.service import Service, run_groqchat
from tests.test_cli import chat, contents


def start(directory: Path) -> Service:
    return Service(directory, "--local", "--workers", "2")


def test_workers_share_one_port_and_one_embedded_server(directory: Path) -> None:
    """The port is free immediately after the exit."""
    with start(directory) as service:
        answers = [chat(service.url, f"message {number}")["message"] for number in range(10)]
        assert contents(service.url)[1::2] == answers
        assert len(workers_of(service.pid)) == 2
        port = service.url.rpartition(":")[2]
        assert service.terminate() == 0
    with Service(directory, "--local", "--workers", "2", PORT=port) as service:
        assert contents(service.url)[1::2] == answers


def test_a_second_service_cannot_use_the_port_of_the_workers(directory: Path) -> None:
    with start(directory) as service:
        port = service.url.rpartition(":")[2]
        second = run_groqchat(
            *("serve", "--workers", "2"),
            cwd=directory,
            PORT=port,
            REDIS_URL=f"embedded:{directory}/other",
            GROQ_BASE_URL="offline:",
        )
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in second.stderr


def test_a_reserved_port_is_in_use_before_a_worker_listens() -> None:
    with (
        reserved_port("127.0.0.1", 0) as port,
        pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"),
        reserved_port("127.0.0.1", port),
    ):
        pass


def test_workers_with_invalid_settings_end_the_service(directory: Path) -> None:
    result = run_groqchat(
        *("serve", "--local", "--workers", "2"),
        cwd=directory,
        PORT="0",
        GROQ_BASE_URL="offline:?latency=1",
    )
    assert result.returncode == 1
    assert "--latency: unknown field; did you mean `latency_ms`?" in result.stderr
    assert "Traceback" not in result.stderr


def test_several_workers_with_a_memory_url_are_rejected(directory: Path) -> None:
    result = run_groqchat(
        *("serve", "--workers", "2"), cwd=directory, PORT="0", REDIS_URL="memory:"
    )
    assert result.returncode == 1
    assert "REDIS_URL=memory: cannot be shared by workers" in result.stderr


@pytest.mark.parametrize(
    ("limit", "cpus"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("?", 64)]
)
def test_the_cpu_limit_of_a_container_limits_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cpus: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(workers, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert workers.available_cpus() == cpus


def test_a_dead_worker_is_replaced(directory: Path) -> None:
    with start(directory) as service:
        first, second = workers_of(service.pid)
        os.kill(first, signal.SIGKILL)
        service.wait_for(r"worker \d ended \(-9\)(.|\n)*worker \d is ready")
        assert second in workers_of(service.pid)
        assert len(workers_of(service.pid)) == 2
        assert requests.get(f"{service.url}/readyz", timeout=30).status_code == 200


def test_workers_end_when_their_supervisor_is_killed(directory: Path) -> None:
    with start(directory) as service:
        before = workers_of(service.pid)
        service.signal(signal.SIGKILL)
        service.wait()
        wait_until(lambda: not any(is_alive(pid) for pid in before))
    with start(directory) as service:
        assert chat(service.url, "again")["history_saved"] is True


def test_a_second_sigint_ends_the_workers_at_once(directory: Path) -> None:
    grace = {"SHUTDOWN_GRACE_S": "60", "GROQ_BASE_URL": "offline:?latency_ms=60000"}
    with Service(directory, "--local", "--workers", "2", **grace) as service:
        before = workers_of(service.pid)
        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(chat, service.url, "Hello")
            wait_until(lambda: bool(contents(service.url)))
            service.signal(signal.SIGINT)
            service.wait_for("groqchat is stopping")
            service.signal(signal.SIGINT)
            with pytest.raises(requests.ConnectionError):
                running.result(timeout=10)
        assert service.wait() == 130
        wait_until(lambda: not any(is_alive(pid) for pid in before))


@pytest.mark.parametrize("count", ["-1", "257", "many"])
def test_an_invalid_number_of_workers_is_rejected(
    capsys: pytest.CaptureFixture[str], count: str
) -> None:
    assert main(["serve", "--workers", count]) == 1
    assert capsys.readouterr().err.startswith("groqchat: WORKERS: must be ")


def test_a_restarted_worker_has_the_settings_of_its_siblings(directory: Path) -> None:
    (directory / ".env").write_text(
        "CHAT_MAX_MESSAGE_CHARS=10\nGROQ_DEFAULT_MODEL=llama-3.1-8b-instant\n"
    )
    with start(directory) as service:
        (directory / ".env").write_text("CHAT_MAX_MESSAGE_CHARS=20\nLOG_LEVEL=LOUD\n")
        for pid in workers_of(service.pid):
            os.kill(pid, signal.SIGKILL)
        service.wait_for(r"ended(.|\n)*ended(.|\n)*is ready(.|\n)*is ready")
        url = f"{service.url}/api/groq-chat/chat"
        answers = [
            requests.post(url, json={"message": "x" * size}, timeout=30) for size in (10, 11)
        ]
    assert [answer.status_code for answer in answers] == [200, 422]
    assert answers[0].json()["model"] == "llama-3.1-8b-instant"


def test_the_settings_of_a_worker_are_those_of_its_supervisor() -> None:
    settings = Settings(
        redis_password=SecretStr("secret"), cors_allowed_origins=("https://example.org",), port=0
    )
    assert decode_settings(encode_settings(settings)) == settings
