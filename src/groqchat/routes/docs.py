"""GET /openapi.json and /docs: the description of the API, for programs and for people."""

from aiohttp import hdrs, web

from groqchat.errors import DocsUnavailable
from groqchat.http.documentation import DOCUMENTATION
from groqchat.http.endpoint import JSON, RouteDocs, endpoint
from groqchat.http.expectations import handle_expect
from groqchat.http.proxies import PROXIES
from groqchat.http.state import Services

routes = web.RouteTableDef()

HTML = "text/html"


# Not endpoints: the OpenAPI document does not contain them. The start log names two of them.
@routes.get("/", expect_handler=handle_expect)
@routes.get("/api/groq-chat", expect_handler=handle_expect)
@routes.get("/api/groq-chat/", expect_handler=handle_expect)
async def root(request: web.Request) -> web.Response:
    """Redirect to the docs page, relative to this address if no prefix is known."""
    prefix = request.app[PROXIES].prefix(request)
    up = "../" * (request.path.count("/") - 1)
    headers = {
        hdrs.LOCATION: f"{prefix}/docs" if prefix else f"{up}docs",
        hdrs.CACHE_CONTROL: "no-store",
    }
    return web.Response(status=302, headers=headers)


@endpoint(routes, "GET", "/openapi.json", docs=RouteDocs(media_type=JSON))
async def openapi(request: web.Request, services: Services) -> web.Response:
    """Return this OpenAPI 3.1 document, with the available models."""
    names = sorted(model["id"] for model in services.catalog.cached)
    prefix = request.app[PROXIES].prefix(request)
    document = request.app[DOCUMENTATION].openapi(
        request.app, services.settings, names, prefix=prefix
    )
    return document.response(request)


@endpoint(routes, "GET", "/docs", docs=RouteDocs(media_type=HTML, errors=(DocsUnavailable,)))
async def docs(request: web.Request, _services: Services) -> web.Response:
    """Return a page that shows the API and sends test requests; loads no external resources."""
    return (await request.app[DOCUMENTATION].page()).response(request)
