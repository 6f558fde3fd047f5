"""A reverse proxy that serves the service below a prefix, as nginx does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from yarl import URL

PREFIX = "/chat"


@asynccontextmanager
async def reverse_proxy(
    service: URL, *, strips_prefix: bool = True, headers: dict[str, str] | None = None
) -> AsyncIterator[URL]:
    """Forward requests below PREFIX to a service; yield the URL of the prefix."""

    async def forward(request: web.Request) -> web.Response:
        path = request.rel_url.raw_path_qs
        target = path.removeprefix(PREFIX) if strips_prefix else path
        sent = {name: value for name, value in request.headers.items() if name != "Content-Length"}
        async with (
            ClientSession(auto_decompress=False) as client,
            client.request(
                request.method,
                URL(str(service).rstrip("/") + (target or "/"), encoded=True),
                data=await request.read() or None,
                headers={**sent, **(headers or {})},
                allow_redirects=False,
            ) as upstream,
        ):
            kept = {
                name: value
                for name, value in upstream.headers.items()
                if name not in {"Content-Length", "Transfer-Encoding"}
            }
            return web.Response(status=upstream.status, body=await upstream.read(), headers=kept)

    app = web.Application()
    app.router.add_route("*", f"{PREFIX}{{path:.*}}", forward)
    async with TestServer(app) as server:
        yield server.make_url(PREFIX)
