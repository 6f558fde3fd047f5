"""The HTTP session for requests to Groq."""

import aiohttp
from yarl import URL

from groqchat.services.groq.aiohttp_internals import GroqConnector, missing_internals
from groqchat.services.groq.stream_end import MAX_DRAINING

# Longer than the gaps between most requests, shorter than the idle timeout of most load balancers.
KEEPALIVE_S = 55.0


def open_http_session(max_connections: int, proxy: URL | None = None) -> aiohttp.ClientSession:
    """Return the HTTP session for Groq; each concurrent turn needs one connection.

    The ends of streams need further ones for a moment. They must not delay the next turn.
    """
    limit = max_connections + MAX_DRAINING
    connector: aiohttp.TCPConnector
    if missing_internals():
        connector = aiohttp.TCPConnector(limit=limit, force_close=True)
    else:
        connector = GroqConnector(limit=limit, keepalive_timeout=KEEPALIVE_S)
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), proxy=proxy
    )
