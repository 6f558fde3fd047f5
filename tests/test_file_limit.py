"""The limit on open files, tested in a separate process."""

import subprocess
import sys

PROGRAM = """
import logging, resource
from groqchat.runtime.file_limit import raise_file_limit
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
raise_file_limit({turns})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def limit_after(soft: int, hard: int, turns: int) -> tuple[int, str]:
    """Return the soft limit after `raise_file_limit`, and the log."""
    program = PROGRAM.format(soft=soft, hard=hard, turns=turns)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(result.stdout), result.stderr


def test_the_limit_is_raised_for_the_maximum_number_of_turns() -> None:
    assert limit_after(256, 4096, 1000) == (2256, "")


def test_a_hard_limit_that_is_too_low_is_logged() -> None:
    limit, log = limit_after(256, 1024, 1000)
    assert limit == 1024
    assert log.startswith("the limit of 1024 open files is too low for MAX_CONCURRENT_TURNS")


def test_a_limit_that_is_high_enough_is_not_changed() -> None:
    assert limit_after(4000, 4096, 1000) == (4000, "")
