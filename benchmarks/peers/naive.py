"""The naive service: a chat as most people would write it first.

FastAPI, one redis.asyncio call after another, and the Groq SDK's `create()`.
"""

import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI
from groq import AsyncGroq
from pydantic import BaseModel
from redis.asyncio import Redis

TTL_S = 86400
BACKLOG = 4096


class ChatRequest(BaseModel):
    message: str
    model: str = "openai/gpt-oss-20b"
    session_id: str | None = None
    context: int = 50


class ChatResponse(BaseModel):
    message: str
    model: str
    timestamp: str
    tokens_used: int
    finish_reason: str


clients: dict[str, Any] = {}


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Open the Redis client and the Groq client."""
    clients["redis"] = Redis(unix_socket_path=os.environ["REDIS_SOCKET"], max_connections=2000)
    clients["groq"] = AsyncGroq(api_key="bench", base_url=os.environ["GROQ_BASE_URL"])
    yield
    await clients["redis"].aclose()


app = FastAPI(lifespan=lifespan)


async def save_message(session_id: str, role: str, content: str, model: str) -> None:
    """Store one message with two awaits, that is, two round trips."""
    key = f"chat:session:{session_id}"
    message = {
        "role": role,
        "content": content,
        "model": model,
        "timestamp": datetime.now(UTC).isoformat(),
    }
    await clients["redis"].zadd(key, {json.dumps(message): time.time()})
    await clients["redis"].expire(key, TTL_S)


@app.post("/api/groq-chat/chat")
async def chat(request: ChatRequest) -> ChatResponse:
    """Read the history, save the user message, call Groq, save the answer and return it."""
    session_id = request.session_id or str(uuid.uuid4())
    key = f"chat:session:{session_id}"
    stored = [
        json.loads(member) for member in await clients["redis"].zrange(key, -request.context, -1)
    ]
    context = [{"role": message["role"], "content": message["content"]} for message in stored]
    await save_message(session_id, "user", request.message, request.model)
    completion = await clients["groq"].chat.completions.create(
        model=request.model, messages=[*context, {"role": "user", "content": request.message}]
    )
    answer = completion.choices[0].message.content
    await save_message(session_id, "assistant", answer, request.model)
    return ChatResponse(
        message=answer,
        model=completion.model,
        timestamp=datetime.now(UTC).isoformat(),
        tokens_used=completion.usage.total_tokens,
        finish_reason=completion.choices[0].finish_reason,
    )


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        access_log=False,
        log_level="warning",
        backlog=BACKLOG,
    )
