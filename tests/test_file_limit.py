"""The limit on open files, tested in a separate process."""

import subprocess
import sys

PROGRAM = """
import logging, resource
from groqchat.runtime.file_limit import raise_file_limit
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
connections = raise_file_limit({turns}, {connections})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], connections)
"""


def limit_after(
    soft: int, hard: int, *, turns: int = 1000, connections: int = 2000
) -> tuple[int, int, str]:
    """Return the soft limit after `raise_file_limit`, the allowed connections, and the log."""
    program = PROGRAM.format(soft=soft, hard=hard, turns=turns, connections=connections)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    limit, allowed = result.stdout.split()
    return int(limit), int(allowed), result.stderr


def test_the_limit_is_raised_for_all_turns_and_connections() -> None:
    assert limit_after(256, 4096) == (3256, 2000, "")
    assert limit_after(256, 4096, connections=10) == (2256, 10, "")


def test_a_hard_limit_that_is_too_low_limits_the_connections() -> None:
    assert limit_after(256, 3000) == (3000, 1829, "")
    assert limit_after(128, 128, turns=8)[:2] == (128, 64)


def test_a_hard_limit_that_is_too_low_is_logged() -> None:
    limit, connections, log = limit_after(256, 1024)
    assert (limit, connections) == (1024, 512)
    assert log.startswith("the limit of 1024 open files is too low for MAX_CONCURRENT_TURNS")


def test_a_limit_that_is_high_enough_is_not_changed() -> None:
    assert limit_after(4000, 4096) == (4000, 2000, "")
