"""The processes of a service, and waiting for what they do."""

import os
import time
from collections.abc import Callable
from pathlib import Path

WAIT_S = 30.0
POLL_S = 0.02


def workers_of(pid: int) -> list[int]:
    """Return the pids of the workers of a supervisor."""
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


def is_alive(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(POLL_S)
