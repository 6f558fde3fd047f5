"""GET /healthz and /readyz: whether the process lives, and whether it can do its work."""

import orjson
from aiohttp import web

from groqchat.http.endpoint import answer_expectation
from groqchat.http.errors import WireError
from groqchat.http.state import chat_of, history_of

routes = web.RouteTableDef()


@routes.get("/healthz", expect_handler=answer_expectation)
async def healthz(_request: web.Request) -> web.Response:
    """Say that the process lives; asks nobody else, so that no outage restarts it."""
    return _response({"status": "ok"}, status=200)


@routes.get("/readyz", expect_handler=answer_expectation)
async def readyz(request: web.Request) -> web.Response:
    """Say whether Redis answers and a model is configured."""
    checks = {
        "redis": "ok" if await history_of(request.app).is_connected() else "unreachable",
        "groq": "ok" if chat_of(request.app).is_configured else "no API key",
    }
    wrong = [f"{name}: {state}" for name, state in checks.items() if state != "ok"]
    if not wrong:
        return _response({"status": "ok", "checks": checks}, status=200)
    error = WireError(status=503, code="not_ready", message="; ".join(wrong))
    body = {"status": "unavailable", "checks": checks, **error.body()}
    return _response(body, status=error.status, headers=error.headers())


def _response(
    body: dict[str, object], *, status: int, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )
