"""GET /openapi.json and /docs: the description of the API, for programs and for people."""

import asyncio
import subprocess
import sys
from functools import cache

import orjson
from aiohttp import web

from groqchat.http.endpoint import JSON, RouteDocs, endpoint
from groqchat.http.openapi import describe
from groqchat.http.state import Services

routes = web.RouteTableDef()

HTML = "text/html"
DOCUMENT_PATH = "/openapi.json"
RENDER_PAGE = (
    "import sys; from offapi import OpenAPITemplate as Template; "
    "sys.stdout.reconfigure(encoding='utf-8'); "
    "sys.stdout.write(Template.SWAGGER.value.format(spec_url=sys.argv[1]))"
)
RENDER_TIMEOUT_S = 30.0
SECURITY_POLICY = "default-src 'self' 'unsafe-inline' data:"


@endpoint(routes, "GET", DOCUMENT_PATH, docs=RouteDocs(media_type=JSON))
async def openapi(request: web.Request, services: Services) -> web.Response:
    """Return this OpenAPI 3.1 document, with the available models."""
    names = [model["id"] for model in services.catalog.cached]
    document = describe(request.app, services.settings, sorted(names))
    return web.Response(body=orjson.dumps(document), content_type=JSON)


@endpoint(routes, "GET", "/docs", docs=RouteDocs(media_type=HTML))
async def docs(_request: web.Request, _services: Services) -> web.Response:
    """Return a page that shows the API and sends test requests; loads no external resources."""
    page = await asyncio.to_thread(_render_page)
    response = web.Response(body=page, content_type=HTML, charset="utf-8")
    response.headers["Content-Security-Policy"] = SECURITY_POLICY
    response.enable_compression()
    return response


@cache
def _render_page() -> bytes:
    # In a separate process, because importing the package takes 50 MB that are never freed.
    rendered = subprocess.run(  # noqa: S603 - this interpreter with a constant program
        [sys.executable, "-c", RENDER_PAGE, DOCUMENT_PATH],
        capture_output=True,
        check=True,
        timeout=RENDER_TIMEOUT_S,
    )
    # Prevents requests to Swagger's public validator.
    return rendered.stdout.replace(b"dom_id: '", b"validatorUrl: null, dom_id: '", 1)
