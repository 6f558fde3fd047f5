"""The plain proxy: aiohttp that forwards a stream from Groq to the client.

It stores nothing, and a client cannot resume or stop a stream. Do not use it in production.
"""

import os
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, TCPConnector, web

from groqchat.runtime.gc_tuning import apply_thresholds

HTTP = web.AppKey("http", ClientSession)
BACKLOG = 4096


async def chat(request: web.Request) -> web.StreamResponse:
    """Send the request to Groq and forward each chunk when it arrives."""
    body = await request.read()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    async with request.app[HTTP].post("/openai/v1/chat/completions", data=body) as completion:
        await response.prepare(request)
        async for data in completion.content.iter_any():
            await response.write(data)
    return response


async def http_client(app: web.Application) -> AsyncIterator[None]:
    """Open the HTTP client for Groq."""
    headers = {"Authorization": "Bearer bench", "Content-Type": "application/json"}
    async with ClientSession(
        os.environ["GROQ_BASE_URL"], headers=headers, connector=TCPConnector(limit=0)
    ) as app[HTTP]:
        yield


def main() -> None:
    """Serve on PORT with groqchat's garbage collector settings."""
    apply_thresholds()
    app = web.Application()
    app.router.add_post("/api/groq-chat/chat", chat)
    app.cleanup_ctx.append(http_client)
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
