"""The HTTP session for requests to Groq."""

import re
from collections.abc import Mapping

import aiohttp
from yarl import URL

from groqchat.errors import ConfigurationError
from groqchat.secret_types import is_header_value
from groqchat.services.groq.aiohttp_internals import (
    BufferedResponse,
    GroqConnector,
    limit_pauses,
    missing_internals,
    read_limited,
)
from groqchat.services.groq.stream_end import MAX_DRAINING

# Longer than the gaps between most requests, shorter than the idle timeout of most load balancers.
KEEPALIVE_S = 55.0
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


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


def set_headers(session: aiohttp.ClientSession, headers: Mapping[str, object]) -> None:
    """Set the headers of all requests of a session.

    They are those of the SDK, which adds GROQ_CUSTOM_HEADERS without a check. Any other header is
    valid, so ConfigurationError names that variable.
    """
    texts = {name: value for name, value in headers.items() if isinstance(value, str)}
    if not all(HEADER_NAME.fullmatch(name) and is_header_value(texts[name]) for name in texts):
        raise ConfigurationError(
            "GROQ_CUSTOM_HEADERS: each line must be a header in printable ASCII, for example X-A: b"
        )
    session.headers.update(texts)


async def send_buffered(  # noqa: PLR0913 - the parts of one request
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    body: bytes | None,
    *,
    timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's, not a deadline of this function
    read_timeout_s: float,
) -> BufferedResponse:
    """Send a request through aiohttp's public API and return the complete response."""
    async with session.request(
        method, URL(url), data=body, timeout=timeout, allow_redirects=False
    ) as response:
        limit_pauses(response, read_timeout_s)
        content = await read_limited(response.content)
    return BufferedResponse(status=response.status, headers=response.raw_headers, content=content)
