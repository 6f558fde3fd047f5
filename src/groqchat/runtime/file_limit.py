"""The limit on open files: each client connection and each turn needs some."""

import logging
import resource

# The connection of the client, and the connection to Groq.
FILES_PER_TURN = 2
# Listening sockets, Redis, logs, and connections that are accepted before others are closed.
OTHER_FILES = 256
# With a very low limit, this part of it is left for other files.
MAX_OTHER_SHARE = 0.25
# One connection to Groq for two clients: not every client runs a turn.
CLIENT_SHARE = 2 / 3

log = logging.getLogger(__name__)


def raise_file_limit(max_concurrent_turns: int, max_connections: int) -> int:
    """Raise the soft limit as far as the hard limit allows; warn if turns need more.

    Returns how many connections of clients the limit allows, at most `max_connections`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_concurrent_turns + max(max_connections, max_concurrent_turns) + OTHER_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    needed = max_concurrent_turns * FILES_PER_TURN + OTHER_FILES
    if allowed < needed:
        log.warning(
            "the limit of %d open files is too low for MAX_CONCURRENT_TURNS=%d; "
            "raise the limit (ulimit -n) or lower the setting",
            allowed,
            max_concurrent_turns,
        )
    if allowed >= wanted:
        return max_connections
    other = min(OTHER_FILES, int(allowed * MAX_OTHER_SHARE))
    return max(1, min(max_connections, int((allowed - other) * CLIENT_SHARE)))
