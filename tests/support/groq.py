"""The mock Groq server for tests, which records the requests that it receives."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from groqchat.offline import groq_format
from groqchat.offline.options import MockGroqOptions
from groqchat.offline.server import create_mock_groq_app


@dataclass
class MockGroq:
    """The mock Groq server and the completion requests that it has received.

    `options` set delays and failures. `requests` contains the body of each completion request,
    `headers` its headers. Every response has `response_headers` in addition to its own headers.
    `before_response` runs after a completion request is received. The requests with the numbers
    in `rejected`, from 1, receive 400, and so do those with a message in `rejected_texts`.
    """

    options: MockGroqOptions = field(default_factory=MockGroqOptions)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    response_headers: dict[str, str] = field(default_factory=dict)
    url: str = ""
    before_response: Callable[[], Awaitable[None]] | None = None
    models_released: asyncio.Event | None = None
    rejected_key: str | None = None
    rejected: set[int] = field(default_factory=set)
    rejected_texts: set[str] = field(default_factory=set)

    def hold_models(self) -> asyncio.Event:
        """Do not answer requests for the list of models until the returned event is set."""
        self.models_released = asyncio.Event()
        return self.models_released

    def hold(self) -> asyncio.Event:
        """Do not answer completion requests until the returned event is set."""
        released = asyncio.Event()

        async def wait() -> None:
            await released.wait()

        self.before_response = wait
        return released

    def app(self) -> web.Application:
        """Return the application of the mock Groq server."""
        app = create_mock_groq_app(self.options)
        app.middlewares.append(self._record)
        return app

    @property
    def prompts(self) -> list[list[tuple[str, str]]]:
        """The prompt of each completion request: role and content of its messages."""
        return [
            [(message["role"], message["content"]) for message in body["messages"]]
            for body in self.requests
        ]

    # The former names of `requests`, `prompts` and `before_response`.
    @property
    def asked(self) -> list[dict[str, Any]]:
        return self.requests

    @property
    def conversations(self) -> list[list[tuple[str, str]]]:
        return self.prompts

    @property
    def before(self) -> Callable[[], Awaitable[None]] | None:
        return self.before_response

    @before.setter
    def before(self, callback: Callable[[], Awaitable[None]] | None) -> None:
        self.before_response = callback

    @web.middleware
    async def _record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "POST":
            self.requests.append(orjson.loads(await request.read()))
            self.headers.append(dict(request.headers))
            number, messages = len(self.requests), self.requests[-1].get("messages", [])
            if self.before_response is not None:
                await self.before_response()
            texts = {str(message.get("content")) for message in messages}
            if number in self.rejected or texts & self.rejected_texts:
                return web.json_response(groq_format.error(400), status=400)
        if self.rejected_key and request.headers["Authorization"].endswith(self.rejected_key):
            return web.json_response(groq_format.error(401), status=401)
        if request.method == "GET" and self.models_released is not None:
            await self.models_released.wait()
        response = await handler(request)
        response.headers.update(self.response_headers)
        return response
