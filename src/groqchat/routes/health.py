"""GET /healthz and /readyz: liveness and readiness of the process."""

import orjson
from aiohttp import web

from groqchat.errors import NotReady
from groqchat.http.endpoint import JSON, RouteDocs, endpoint
from groqchat.http.errors import to_api_error
from groqchat.http.state import Services
from groqchat.models import HealthResponse, ReadyResponse

routes = web.RouteTableDef()


@endpoint(routes, "GET", "/healthz")
async def healthz(_request: web.Request, _services: Services) -> HealthResponse:
    """Report that the process runs; does not contact Redis or Groq."""
    return HealthResponse()


@endpoint(routes, "GET", "/readyz", docs=RouteDocs(errors=(NotReady,)))
async def readyz(_request: web.Request, services: Services) -> ReadyResponse | web.Response:
    """Report whether Redis answers and a model is configured."""
    checks = {
        "redis": "ok" if await services.history.is_connected() else "unreachable",
        "groq": "ok" if services.chat.is_configured else "no API key",
    }
    failed = [f"{name}: {state}" for name, state in checks.items() if state != "ok"]
    if not failed:
        return ReadyResponse(checks=checks)
    error = to_api_error(NotReady(message="; ".join(failed)))
    body = {"status": "unavailable", "checks": checks, **error.body()}
    return web.Response(
        body=orjson.dumps(body), status=error.status, headers=error.headers(), content_type=JSON
    )
