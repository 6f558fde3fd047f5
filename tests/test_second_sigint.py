"""A second SIGINT ends all processes at once, whatever they are doing at that moment."""

import fcntl
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGSTOP, SIGUSR1

import pytest
import requests

from groqchat.storage.embedded import STOP_TIMEOUT_S
from tests.support.processes import POLL_S, is_alive, wait_until, workers_of
from tests.support.service import Service
from tests.test_cli import chat, contents

# Far longer than a test waits.
SLOW = {"SHUTDOWN_GRACE_S": "60", "GROQ_BASE_URL": "offline:?latency_ms=60000"}

# Both signals arrive before the event loop continues.
BOTH_AT_ONCE = """
import signal
from groqchat.cli import main

def interrupt_twice(*_):
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGUSR1, interrupt_twice)
raise SystemExit(main())
"""

# The second signal arrives after all turns, while aiohttp closes the connections.
DURING_CLEANUP = """
import asyncio, os, signal
from aiohttp.web_server import Server
from groqchat.cli import main

async def shutdown(self, timeout=None):
    if not interrupted:
        interrupted.append(self)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

interrupted = []
Server.shutdown = shutdown
raise SystemExit(main())
"""


def is_server_running(directory: Path) -> bool:
    """Whether the embedded server in a directory runs: it inherits a lock."""
    with (directory / ".data/redis/valkey.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_ends_a_running_turn_even_if_it_arrives_with_the_first(
    directory: Path, workers: str
) -> None:
    program = (sys.executable, "-c", BOTH_AT_ONCE)
    with Service(directory, "--local", "--workers", workers, program=program, **SLOW) as service:
        before = workers_of(service.pid)
        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(chat, service.url, "Hello")
            wait_until(lambda: bool(contents(service.url)))
            service.signal(SIGUSR1)
            with pytest.raises(requests.ConnectionError):
                running.result(timeout=10)
        assert service.wait() == 130
        wait_until(lambda: not any(is_alive(pid) for pid in before))
        assert not is_server_running(directory)
        service.read_to_end()
        assert "Traceback" not in service.log


def test_it_ends_a_service_that_closes_connections(directory: Path) -> None:
    program = (sys.executable, "-c", DURING_CLEANUP)
    with Service(directory, "--local", program=program) as service:
        service.signal(SIGINT)
        assert service.wait() == 130
        assert not is_server_running(directory)
        service.read_to_end()
        assert "Traceback" not in service.log


def test_a_third_one_ends_a_service_whose_embedded_server_does_not_stop(directory: Path) -> None:
    with Service(directory, "--local") as service:
        server = int((directory / ".data/redis/valkey.pid").read_text())
        os.kill(server, SIGSTOP)
        try:
            service.signal(SIGINT)
            service.wait_for("groqchat is stopping")
            service.signal(SIGINT)
            service.wait_for("interrupted again")
            deadline = time.monotonic() + STOP_TIMEOUT_S / 2
            # uvloop ignores a signal that arrives while it leaves the event loop.
            while service.status is None and time.monotonic() < deadline:
                service.signal(SIGINT)
                time.sleep(POLL_S)
            # The second value: a further signal arrived while Python was exiting.
            assert service.status in {130, -SIGINT}
        finally:
            os.kill(server, SIGKILL)
