"""The service in its own process, as a user starts it."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

GROQCHAT = (sys.executable, "-m", "groqchat")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0


def run_groqchat(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a groqchat command and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "groqchat", *arguments],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def environment(**variables: str) -> dict[str, str]:
    """Return an environment that contains only the given settings, PATH and HOME."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**inherited, **variables}


class Service:
    """`groqchat serve` on a free port; `log` contains its log, as far as it was read."""

    def __init__(
        self, cwd: Path, *arguments: str, program: Sequence[str] = GROQCHAT, **variables: str
    ) -> None:
        self._process = subprocess.Popen(
            [*program, "serve", *arguments],
            cwd=cwd,
            env=environment(**{"PORT": "0", **variables}),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.log = ""

    def __enter__(self) -> Self:
        self.url = self.wait_for(r"answers at (http://\S+), documentation").group(1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A killed service does not stop its embedded server.
        if self._process.poll() is None:
            self._process.terminate()
        self.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read the log until it contains a pattern; return the match."""
        assert self._process.stderr is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            found = re.search(pattern, self.log)
            if found:
                return found
            remaining = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stderr], [], [], max(remaining, 0))
            data = os.read(self._process.stderr.fileno(), 65536) if ready else b""
            assert data, f"{pattern!r} is not in the log:\n{self.log}"
            self.log += data.decode()

    def read_to_end(self) -> None:
        """Read the rest of the log of a process that has ended."""
        assert self._process.stderr is not None
        self.log += self._process.stderr.read().decode()

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def terminate_later(self) -> None:
        """Send SIGTERM without waiting for the end."""
        self.signal(signal.SIGTERM)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    @property
    def status(self) -> int | None:
        """The exit status of the process; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the end of the process and return its exit status."""
        return self._process.wait(STOP_TIMEOUT_S)
