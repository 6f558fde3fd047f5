"""Groq's stand-in for a test, with a memory of what it was asked."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from groqchat.offline.options import MockGroqOptions
from groqchat.offline.server import create_mock_groq_app


@dataclass
class MockGroq:
    """`options` decide how it behaves, `asked` holds the bodies of the completions asked for."""

    options: MockGroqOptions = field(default_factory=MockGroqOptions)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    response_headers: dict[str, str] = field(default_factory=dict)
    url: str = ""
    before: Callable[[], Awaitable[None]] | None = None

    def app(self) -> web.Application:
        app = create_mock_groq_app(self.options)
        app.middlewares.append(self._remember)
        return app

    @property
    def conversations(self) -> list[list[tuple[str, str]]]:
        """What each completion was given: role and content of every message."""
        return [
            [(message["role"], message["content"]) for message in body["messages"]]
            for body in self.asked
        ]

    @web.middleware
    async def _remember(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "POST":
            self.asked.append(orjson.loads(await request.read()))
            self.headers.append(dict(request.headers))
            if self.before is not None:
                await self.before()
        response = await handler(request)
        response.headers.update(self.response_headers)
        return response
