"""CORS: which origins may call the API from a browser."""

from collections.abc import Sequence

import aiohttp_cors
from aiohttp import hdrs, web

from groqchat.address_types import ANY_ORIGIN
from groqchat.http.origins import AllowedOrigins

# OpenAI's SDK sends a dozen headers of its own. None of them grants access without credentials.
ALLOWED_HEADERS = "*"
EXPOSED_HEADERS = (
    "X-Request-ID",
    "Retry-After",
    "X-Turn-ID",
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


def setup_cors(app: web.Application, origins: Sequence[str], allowed: AllowedOrigins) -> None:
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
    _add_response_headers(app, allowed)


def headers_without_request(origins: Sequence[str]) -> dict[str, str]:
    """Return the CORS headers of an error for a request that was not parsed.

    Its origin is unknown, so a page can read the error only if a single origin is allowed, or any.
    """
    allowed = {ANY_ORIGIN} if ANY_ORIGIN in origins else set(origins)
    if len(allowed) != 1:
        return {}
    return {
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: allowed.pop(),
        hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: ",".join(EXPOSED_HEADERS),
    }


def is_preflight(request: web.Request) -> bool:
    """Return whether a browser asks for permission to send another request."""
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ORIGIN in request.headers
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def preflight_response(request: web.Request) -> web.Response:
    """Return the permission to send a request that will fail.

    aiohttp-cors rejects the preflight request for an unknown path or method. A page could then not
    read the error.
    """
    asked = request.headers
    headers = {
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: asked[hdrs.ORIGIN],
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: asked[hdrs.ACCESS_CONTROL_REQUEST_METHOD],
        hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_MAX_AGE_S),
    }
    if hdrs.ACCESS_CONTROL_REQUEST_HEADERS in asked:
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked[hdrs.ACCESS_CONTROL_REQUEST_HEADERS]
    return web.Response(headers=headers)


def _add_response_headers(app: web.Application, allowed: AllowedOrigins) -> None:
    """Add `Vary: Origin` to every response, and CORS headers for an allowed origin.

    The signal handler of aiohttp-cors ignores unknown paths and methods, and takes 3.7 µs for
    every response. If it is not found, it adds its headers first.
    """
    handlers = app.on_response_prepare
    library_handler = next((found for found in handlers if _is_from_library(found)), None)
    if library_handler is not None:
        handlers.remove(library_handler)
    exposed = ",".join(EXPOSED_HEADERS)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        headers.add(hdrs.VARY, hdrs.ORIGIN)
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None or hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in headers:
            return
        if allowed.allows(origin):
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = exposed

    handlers.append(add_headers)


def _is_from_library(handler: object) -> bool:
    return (getattr(handler, "__module__", None) or "").partition(".")[0] == LIBRARY
