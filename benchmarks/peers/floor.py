"""The floor: what a turn costs on aiohttp with nothing around it.

Bare handlers, commands packed by hiredis over one raw connection, a plain POST, no validation,
no errors, no TTL on the index, no limits. Nothing that may be served to anyone.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import orjson
import uvloop
from aiohttp import ClientSession, TCPConnector, web

from groqchat.garbage import relax

TTL_S = 86400
BACKLOG = 4096


class RawRedis(asyncio.Protocol):
    """One multiplexed connection: what is written within a tick leaves together."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int]] = deque()
        self._replies: list[Any] = []
        self._pending: list[bytes] = []
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def run(self, *commands: tuple[str | bytes | int, ...]) -> asyncio.Future[list[Any]]:
        loop = asyncio.get_running_loop()
        if not self._pending:
            loop.call_soon(self._flush)
        self._pending += [hiredis.pack_command(command) for command in commands]
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.append((future, len(commands)))
        return future

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while True:
            reply = self._reader.gets()
            if reply is False:
                return
            self._replies.append(reply)
            future, count = self._waiting[0]
            if len(self._replies) == count:
                self._waiting.popleft()
                future.set_result(self._replies)
                self._replies = []

    def _flush(self) -> None:
        self._transport.write(b"".join(self._pending))
        self._pending.clear()


REDIS = web.AppKey("redis", RawRedis)
HTTP = web.AppKey("http", ClientSession)


async def chat(request: web.Request) -> web.Response:
    """Save, read the context, ask, save, answer."""
    asked = orjson.loads(await request.read())
    redis, http = request.app[REDIS], request.app[HTTP]
    key = f"chat:session:{asked['session_id']}"
    question = {"role": "user", "content": asked["message"]}
    now = repr(time.time())
    tail, *_ = await redis.run(
        ("ZRANGE", key, -asked["context"], -1),
        ("ZADD", key, now, orjson.dumps({"id": now, **question})),
        ("EXPIRE", key, TTL_S),
    )
    earlier = [orjson.loads(member) for member in tail]
    messages = [{"role": each["role"], "content": each["content"]} for each in earlier]
    body = orjson.dumps({"model": asked["model"], "messages": [*messages, question]})
    async with http.post("/openai/v1/chat/completions", data=body) as response:
        completion = orjson.loads(await response.read())
    answer = completion["choices"][0]["message"]["content"]
    now = repr(time.time())
    await redis.run(
        ("ZADD", key, now, orjson.dumps({"id": now, "role": "assistant", "content": answer})),
        ("EXPIRE", key, TTL_S),
    )
    return web.Response(
        body=orjson.dumps(
            {
                "message": answer,
                "model": completion["model"],
                "timestamp": now,
                "tokens_used": completion["usage"]["total_tokens"],
                "finish_reason": completion["choices"][0]["finish_reason"],
            }
        ),
        content_type="application/json",
    )


async def resources(app: web.Application) -> AsyncIterator[None]:
    """Open the connection to Redis and the client for the upstream."""
    loop = asyncio.get_running_loop()
    transport, app[REDIS] = await loop.create_unix_connection(RawRedis, os.environ["REDIS_SOCKET"])
    headers = {"Authorization": "Bearer bench", "Content-Type": "application/json"}
    async with ClientSession(
        os.environ["GROQ_BASE_URL"], headers=headers, connector=TCPConnector(limit=0)
    ) as app[HTTP]:
        yield
    transport.close()


def main() -> None:
    """Serve on PORT; with COLLECTOR=relaxed, the garbage collector is as groqchat has it."""
    if os.environ.get("COLLECTOR") == "relaxed":
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
