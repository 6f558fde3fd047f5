"""The command `groqchat`, which imports the service only when it runs."""

import signal
import sys


def run() -> int:
    """Run one command and return its exit status, also if Ctrl-C interrupts the imports."""
    try:
        from groqchat.cli import main  # noqa: PLC0415 - takes half a second, see above

        return main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(run())
