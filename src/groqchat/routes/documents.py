"""GET /openapi.json and /docs: the API described, for programs and for people."""

import asyncio
import subprocess
import sys
from functools import cache

import orjson
from aiohttp import web

from groqchat.http.endpoint import JSON, Notes, endpoint
from groqchat.http.openapi import describe
from groqchat.http.state import catalog_of, settings_of

routes = web.RouteTableDef()

HTML = "text/html"
DOCUMENT_PATH = "/openapi.json"
MAKE_PAGE = (
    "import sys; from offapi import OpenAPITemplate as Template; "
    "sys.stdout.reconfigure(encoding='utf-8'); "
    "sys.stdout.write(Template.SWAGGER.value.format(spec_url=sys.argv[1]))"
)
MAKE_TIMEOUT_S = 30.0
SECURITY_POLICY = "default-src 'self' 'unsafe-inline' data:"


@endpoint(routes, "GET", DOCUMENT_PATH, notes=Notes(media_type=JSON))
async def openapi(request: web.Request) -> web.Response:
    """Return this description, as OpenAPI 3.1, with the models that may be used."""
    names = [model["id"] for model in catalog_of(request.app).known]
    document = describe(request.app, settings_of(request.app), sorted(names))
    return web.Response(body=orjson.dumps(document), content_type=JSON)


@endpoint(routes, "GET", "/docs", notes=Notes(media_type=HTML))
async def docs(_request: web.Request) -> web.Response:
    """Return a page to read the description on, and to try it out; it loads nothing else."""
    page = await asyncio.to_thread(_page)
    response = web.Response(body=page, content_type=HTML, charset="utf-8")
    response.headers["Content-Security-Policy"] = SECURITY_POLICY
    response.enable_compression()
    return response


@cache
def _page() -> bytes:
    # In a process of its own: the package takes fifty megabytes, and gives none of them back.
    made = subprocess.run(  # noqa: S603 - this interpreter, and nothing from outside
        [sys.executable, "-c", MAKE_PAGE, DOCUMENT_PATH],
        capture_output=True,
        check=True,
        timeout=MAKE_TIMEOUT_S,
    )
    # Else it would ask a service of its own for an opinion on the description.
    return made.stdout.replace(b"dom_id: '", b"validatorUrl: null, dom_id: '", 1)
