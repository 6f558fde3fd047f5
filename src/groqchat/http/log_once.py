"""Log lines that a client can cause: once for each cause, in bounded number."""

import logging

# More causes than a correct setup has. Without a bound, clients could fill memory and log.
MAX_CAUSES = 100
# Longer than any host name (253 characters).
MAX_CAUSE_CHARS = 300


class LogOnce:
    """A logger that writes one line for each cause, which is text of a client."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._causes: set[str] = set()

    def warning(self, cause: str, message: str) -> None:
        """Log `message`, in which %s is the escaped cause, if the cause is new."""
        cause = cause[:MAX_CAUSE_CHARS]
        if cause in self._causes or len(self._causes) >= MAX_CAUSES:
            return
        self._causes.add(cause)
        self._log.warning(message.replace("%s", "%r"), cause)
        if len(self._causes) == MAX_CAUSES:
            self._log.warning("further lines of this kind are not logged")
