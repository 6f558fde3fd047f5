"""GET /healthz and /readyz: whether the process lives, and whether it can do its work."""

import orjson
from aiohttp import web

from groqchat.errors import NotReady
from groqchat.http.endpoint import JSON, Notes, endpoint
from groqchat.http.errors import wire_error
from groqchat.http.state import chat_of, history_of
from groqchat.models import HealthAnswer, ReadyAnswer

routes = web.RouteTableDef()


@endpoint(routes, "GET", "/healthz")
async def healthz(_request: web.Request) -> HealthAnswer:
    """Say that the process lives; asks nobody else, so that no outage restarts it."""
    return HealthAnswer()


@endpoint(routes, "GET", "/readyz", notes=Notes(errors=(NotReady,)))
async def readyz(request: web.Request) -> ReadyAnswer | web.Response:
    """Say whether Redis answers and a model is configured."""
    checks = {
        "redis": "ok" if await history_of(request.app).is_connected() else "unreachable",
        "groq": "ok" if chat_of(request.app).is_configured else "no API key",
    }
    wrong = [f"{name}: {state}" for name, state in checks.items() if state != "ok"]
    if not wrong:
        return ReadyAnswer(checks=checks)
    error = wire_error(NotReady(message="; ".join(wrong)))
    body = {"status": "unavailable", "checks": checks, **error.body()}
    return web.Response(
        body=orjson.dumps(body), status=error.status, headers=error.headers(), content_type=JSON
    )
