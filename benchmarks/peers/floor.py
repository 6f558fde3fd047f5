"""The floor: a turn on bare aiohttp, with one raw connection to Redis and a plain POST to Groq.

hiredis packs the commands. The floor has no validation, no error handling, no limits and no session
index. Do not use it in production.
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

from groqchat.runtime.gc_tuning import apply_thresholds

TTL_S = 86400
BACKLOG = 4096


class RawRedis(asyncio.Protocol):
    """One connection for all turns: commands of one event loop iteration share one write."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int]] = deque()
        self._replies: list[Any] = []
        self._pending: list[bytes] = []
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def execute(self, *commands: tuple[str | bytes | int, ...]) -> asyncio.Future[list[Any]]:
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
    """Read the context and save the user message, call Groq, save the answer and return it."""
    fields = orjson.loads(await request.read())
    redis, http = request.app[REDIS], request.app[HTTP]
    key = f"chat:session:{fields['session_id']}"
    user_message = {"role": "user", "content": fields["message"]}
    now = repr(time.time())
    members, *_ = await redis.execute(
        ("ZRANGE", key, -fields["context"], -1),
        ("ZADD", key, now, orjson.dumps({"id": now, **user_message})),
        ("EXPIRE", key, TTL_S),
    )
    stored = [orjson.loads(member) for member in members]
    context = [{"role": message["role"], "content": message["content"]} for message in stored]
    body = orjson.dumps({"model": fields["model"], "messages": [*context, user_message]})
    async with http.post("/openai/v1/chat/completions", data=body) as response:
        completion = orjson.loads(await response.read())
    answer = completion["choices"][0]["message"]["content"]
    now = repr(time.time())
    await redis.execute(
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


async def clients(app: web.Application) -> AsyncIterator[None]:
    """Open the connection to Redis and the HTTP client for Groq."""
    loop = asyncio.get_running_loop()
    transport, app[REDIS] = await loop.create_unix_connection(RawRedis, os.environ["REDIS_SOCKET"])
    headers = {"Authorization": "Bearer bench", "Content-Type": "application/json"}
    async with ClientSession(
        os.environ["GROQ_BASE_URL"], headers=headers, connector=TCPConnector(limit=0)
    ) as app[HTTP]:
        yield
    transport.close()


def main() -> None:
    """Serve on PORT; GC_SETTINGS=groqchat applies groqchat's garbage collector settings."""
    if os.environ.get("GC_SETTINGS") == "groqchat":
        apply_thresholds()
    app = web.Application()
    app.router.add_post("/api/groq-chat/chat", chat)
    app.cleanup_ctx.append(clients)
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
