"""GET /openapi.json and /docs: the API described, for programs and for people."""

import asyncio
from functools import cache

import orjson
from aiohttp import web

from groqchat.http.endpoint import JSON, Notes, endpoint
from groqchat.http.openapi import describe
from groqchat.http.state import catalog_of, settings_of

routes = web.RouteTableDef()

HTML = "text/html"
DOCUMENT_PATH = "/openapi.json"


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
    response.enable_compression()
    return response


@cache
def _page() -> bytes:
    # Megabytes, which only those need who read the page.
    from offapi import OpenAPITemplate  # noqa: PLC0415 - see above

    return OpenAPITemplate.SWAGGER.value.format(spec_url=DOCUMENT_PATH).encode()
