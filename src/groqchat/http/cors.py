"""Which origins' pages may call the API."""

from collections.abc import Sequence

import aiohttp_cors
from aiohttp import hdrs, web

# OpenAI's client sends a dozen of its own; without credentials none of them opens anything.
ALLOWED_HEADERS = "*"
EXPOSED_HEADERS = (
    "X-Request-ID",
    "Retry-After",
    "X-History-Saved",
    *(
        f"X-RateLimit-{what}-{of}"
        for what in ("Limit", "Remaining", "Reset")
        for of in ("Requests", "Tokens")
    ),
)
# Browsers keep a preflight's answer this long; Chromium keeps none longer than two hours.
PREFLIGHT_MAX_AGE_S = 7200


def setup_cors(app: web.Application, origins: Sequence[str]) -> None:
    """Allow `origins` on every route there is; never with credentials."""
    if not origins:
        return
    options = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call] # it has no types
        allow_credentials=False,
        allow_headers=ALLOWED_HEADERS,
        expose_headers=EXPOSED_HEADERS,
        max_age=PREFLIGHT_MAX_AGE_S,
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        # A HEAD route answers for its GET, which shares its resource.
        if route.method != hdrs.METH_HEAD:
            cors.add(route)
    # aiohttp-cors looks at each response; one of the same origin needs no look.
    permit = app.on_response_prepare.pop()

    async def answer_origin(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if hdrs.ORIGIN in request.headers:
            await permit(request, response)

    app.on_response_prepare.append(answer_origin)
