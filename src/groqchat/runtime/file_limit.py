"""The limit on open files: each client connection and each turn needs some."""

import logging
import resource

# The connection of the client, and the connection to Groq.
FILES_PER_TURN = 2
# Listening sockets, Redis, logs, and clients without a running turn.
OTHER_FILES = 256

log = logging.getLogger(__name__)


def raise_file_limit(max_concurrent_turns: int) -> None:
    """Raise the soft limit as far as the hard limit allows; warn if that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_concurrent_turns * FILES_PER_TURN + OTHER_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "the limit of %d open files is too low for MAX_CONCURRENT_TURNS=%d; "
            "raise the limit (ulimit -n) or lower the setting",
            allowed,
            max_concurrent_turns,
        )
