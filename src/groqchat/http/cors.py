"""CORS: which origins may call the API from a browser."""

from collections.abc import Sequence

import aiohttp_cors
from aiohttp import hdrs, web

# OpenAI's SDK sends a dozen headers of its own. None of them grants access without credentials.
ALLOWED_HEADERS = "*"
EXPOSED_HEADERS = (
    "X-Request-ID",
    "Retry-After",
    "X-History-Saved",
    *(
        f"X-RateLimit-{value}-{unit}"
        for value in ("Limit", "Remaining", "Reset")
        for unit in ("Requests", "Tokens")
    ),
)
# How long browsers cache a preflight response. Chromium caches it for two hours at most.
PREFLIGHT_MAX_AGE_S = 7200
LIBRARY = aiohttp_cors.__name__


def setup_cors(app: web.Application, origins: Sequence[str]) -> None:
    """Allow requests from `origins` on all routes, never with credentials."""
    if not origins:
        return
    options = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call] # no types in aiohttp-cors
        allow_credentials=False,
        allow_headers=ALLOWED_HEADERS,
        expose_headers=EXPOSED_HEADERS,
        max_age=PREFLIGHT_MAX_AGE_S,
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        # aiohttp-cors configures a HEAD route together with the GET route of its resource.
        if route.method != hdrs.METH_HEAD:
            cors.add(route)
    _add_response_headers(app)


def _add_response_headers(app: web.Application) -> None:
    """Add `Vary: Origin` to every response, and CORS headers only for requests with an origin.

    aiohttp-cors examines every response, which takes 3.7 µs. Most requests have no `Origin`
    header. If its signal handler is not found, aiohttp-cors continues to examine every response.
    """
    handlers = app.on_response_prepare
    library_handler = next((found for found in handlers if _is_from_library(found)), None)
    if library_handler is not None:
        handlers.remove(library_handler)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if library_handler is not None and hdrs.ORIGIN in request.headers:
            await library_handler(request, response)

    handlers.append(add_headers)


def _is_from_library(handler: object) -> bool:
    return (getattr(handler, "__module__", None) or "").partition(".")[0] == LIBRARY
