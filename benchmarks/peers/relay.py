"""The floor for streams: aiohttp that passes on what it reads, with nothing around it.

Nothing is kept, nothing can be resumed or stopped. Nothing that may be served to anyone.
"""

import os
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, TCPConnector, web

from groqchat.garbage import relax

HTTP = web.AppKey("http", ClientSession)
BACKLOG = 4096


async def chat(request: web.Request) -> web.StreamResponse:
    """Ask and pass on each piece as it comes."""
    body = await request.read()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    async with request.app[HTTP].post("/openai/v1/chat/completions", data=body) as upstream:
        await response.prepare(request)
        async for data in upstream.content.iter_any():
            await response.write(data)
    return response


async def resources(app: web.Application) -> AsyncIterator[None]:
    """Open the client for the upstream."""
    headers = {"Authorization": "Bearer bench", "Content-Type": "application/json"}
    async with ClientSession(
        os.environ["GROQ_BASE_URL"], headers=headers, connector=TCPConnector(limit=0)
    ) as app[HTTP]:
        yield


def main() -> None:
    """Serve on PORT, with the garbage collector as groqchat has it."""
    relax()
    app = web.Application()
    app.router.add_post("/api/groq-chat/chat", chat)
    app.cleanup_ctx.append(resources)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        access_log=None,
        backlog=BACKLOG,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
