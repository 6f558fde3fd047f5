"""POST /chat and /simple-chat: a message in, the model's answer out."""

from aiohttp import web

from groqchat.http.endpoint import endpoint
from groqchat.http.state import chat_of
from groqchat.models import ChatAnswer, ChatRequest

routes = web.RouteTableDef()


@endpoint(routes, "POST", "/api/groq-chat/chat")
async def chat(request: web.Request, body: ChatRequest) -> ChatAnswer:
    """Answer a message given as JSON."""
    return await chat_of(request.app).answer(body)


@endpoint(routes, "POST", "/api/groq-chat/simple-chat")
async def simple_chat(request: web.Request, query: ChatRequest) -> ChatAnswer:
    """Answer a message given as query parameters."""
    return await chat_of(request.app).answer(query)
