"""How many files the process may have open: each client and each turn takes some."""

import logging
import resource

# The client's connection, and one to Groq.
FILES_PER_TURN = 2
# Listening sockets, Redis, logs, and clients without a turn.
OTHER_FILES = 256

log = logging.getLogger(__name__)


def raise_file_limit(max_turns_in_flight: int) -> None:
    """Raise the soft limit as far as it may go and warn where that is too little."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_turns_in_flight * FILES_PER_TURN + OTHER_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "only %d files may be open, which is too few for MAX_TURNS_IN_FLIGHT=%d; "
            "raise the limit (ulimit -n) or lower the setting",
            allowed,
            max_turns_in_flight,
        )
