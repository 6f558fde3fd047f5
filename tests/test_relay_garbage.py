"""Streams without a session leave nothing to the garbage collector, however their readers end.

The collector runs rarely under load, and each stream can refer to megabytes.
"""

import json
import subprocess
import sys

import pytest

from tests.support.docs import ROOT
from tests.support.relay_garbage import SCENARIOS
from tests.support.service import environment


@pytest.mark.parametrize("readers", SCENARIOS)
def test_the_streams_of_readers_leave_no_reference_cycles(readers: str, redis_url: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.relay_garbage", readers, redis_url],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"garbage": {}, "alive": {}}
