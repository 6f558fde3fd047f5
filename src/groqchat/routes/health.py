"""GET /healthz and /readyz: liveness and readiness of the process."""

import orjson
from aiohttp import web

from groqchat.errors import NotReady
from groqchat.http.endpoint import JSON, RouteDocs, endpoint
from groqchat.http.errors import to_api_error
from groqchat.http.state import Services
from groqchat.models import HealthResponse, ReadyResponse
from groqchat.storage.write_probe import OK

routes = web.RouteTableDef()

NO_KEY = "no API key"


@endpoint(routes, "GET", "/healthz")
async def healthz(_request: web.Request, _services: Services) -> HealthResponse:
    """Report that the process runs; does not contact Redis or Groq."""
    return HealthResponse()


@endpoint(routes, "GET", "/readyz", docs=RouteDocs(errors=(NotReady,)))
async def readyz(_request: web.Request, services: Services) -> ReadyResponse | web.Response:
    """Report whether Redis accepts writes and a model is configured.

    The state of Groq is that of the last request for its list of models. Its failures do not make
    the service unready: all replicas would become unready together.
    """
    is_configured = services.chat.is_configured
    checks = {
        "redis": await services.history.write_state(),
        "groq": services.catalog.groq_state if is_configured else NO_KEY,
    }
    failed = [f"redis: {checks['redis']}"] if checks["redis"] != OK else []
    if not is_configured:
        failed.append(f"groq: {NO_KEY}")
    if not failed:
        return ReadyResponse(checks=checks, groq_checked_at=services.catalog.checked_at)
    error = to_api_error(NotReady(message="; ".join(failed)))
    body = {"status": "unavailable", "checks": checks, **error.body()}
    return web.Response(
        body=orjson.dumps(body), status=error.status, headers=error.headers(), content_type=JSON
    )
