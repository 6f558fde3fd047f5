"""Several workers behind one port."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from groqchat.errors import ConfigurationError
from groqchat.runtime import workers
from groqchat.runtime.workers import reserved_port
from tests.support.service import Service, run_groqchat
from tests.test_cli import chat, contents


@pytest.fixture
def directory() -> Iterator[Path]:
    """A working directory with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="groqchat-") as name:
        yield Path(name)


def start(directory: Path) -> Service:
    return Service(directory, "--local", "--workers", "2")


def children(pid: int) -> list[int]:
    """Return the pids of the workers of a service."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
            command = (entry.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"--worker\0" in command:
            found.append(int(entry.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not (callable(condition) and condition()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def test_workers_share_one_port_and_one_embedded_redis(directory: Path) -> None:
    with start(directory) as service:
        service.wait_for(r"answers at(.|\n)*answers at")
        spoken = [chat(service.url, f"message {number}")["message"] for number in range(10)]
        assert contents(service.url)[1::2] == spoken
        assert len(children(service.pid)) == 2
        assert service.terminate() == 0
    with start(directory) as service:
        assert contents(service.url)[1::2] == spoken


def test_the_port_is_free_again_at_once(directory: Path) -> None:
    with start(directory) as service:
        chat(service.url, "Hello")
        port = service.url.rpartition(":")[2]
        assert service.terminate() == 0
    with Service(directory, "--local", "--workers", "2", PORT=port) as service:
        assert len(contents(service.url)) == 2


def test_a_port_that_another_service_shares_among_its_workers_is_taken(directory: Path) -> None:
    with start(directory) as service:
        service.wait_for(r"answers at(.|\n)*answers at")
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


def test_a_port_is_taken_before_anybody_listens_on_it() -> None:
    with (
        reserved_port("127.0.0.1", 0) as port,
        pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"),
        reserved_port("127.0.0.1", port),
    ):
        pass


def test_workers_that_cannot_start_as_they_are_set_up_end_the_service(directory: Path) -> None:
    result = run_groqchat(
        *("serve", "--local", "--workers", "2"),
        cwd=directory,
        PORT="0",
        GROQ_BASE_URL="offline:?latency=1",
    )
    assert result.returncode == 1
    assert "--latency: Extra inputs are not permitted" in result.stderr
    assert "Traceback" not in result.stderr


def test_workers_do_not_share_what_is_in_memory(directory: Path) -> None:
    result = run_groqchat(
        *("serve", "--workers", "2"), cwd=directory, PORT="0", REDIS_URL="memory:"
    )
    assert result.returncode == 1
    assert "REDIS_URL=memory: cannot be shared by workers" in result.stderr


@pytest.mark.parametrize(
    ("limit", "cpus"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("?", 64)]
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cpus: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(workers, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert workers.available_cpus() == cpus


def test_a_dead_worker_is_replaced(directory: Path) -> None:
    with start(directory) as service:
        service.wait_for(r"answers at(.|\n)*answers at")
        first, second = children(service.pid)
        os.kill(first, signal.SIGKILL)
        service.wait_for(r"worker \d ended \(-9\)(.|\n)*answers at")
        assert second in children(service.pid)
        assert len(children(service.pid)) == 2
        assert requests.get(f"{service.url}/readyz", timeout=30).status_code == 200


def test_workers_end_when_whoever_watches_them_is_killed(directory: Path) -> None:
    with start(directory) as service:
        service.wait_for(r"answers at(.|\n)*answers at")
        before = children(service.pid)
        service.signal(signal.SIGKILL)
        service.wait()
        until(lambda: not any(alive(pid) for pid in before))
    with start(directory) as service:
        assert chat(service.url, "again")["history_saved"] is True


@pytest.mark.parametrize("count", ["-1", "257", "many"])
def test_a_number_of_workers_that_makes_no_sense_is_refused(directory: Path, count: str) -> None:
    result = run_groqchat("serve", "--workers", count, cwd=directory)
    assert result.returncode == 2
    assert "argument --workers: invalid" in result.stderr
