"""The service in the process of the test, which can change it, measure it and stop it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from pydantic import SecretStr

from groqchat.http.state import SERVICES
from groqchat.runtime.runner import Runner
from groqchat.runtime.server import create_runner
from groqchat.services.turns.limiter import TurnLimiter
from groqchat.settings import Settings
from tests.support.groq import MockGroq


def new_settings(redis_url: str, groq_url: str, /, **changes: Any) -> Settings:
    """Return the settings of a service with this Redis and this Groq server."""
    defaults = {
        "redis_url": SecretStr(redis_url),
        "groq_base_url": groq_url,
        "groq_api_key": SecretStr("gsk_test"),
    }
    return Settings(**{**defaults, **changes})


@asynccontextmanager
async def running(runner: Runner) -> AsyncIterator[str]:
    """Run a service on a free port; yield its URL. It stops as after SIGTERM."""
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def worker(
    redis_url: str, groq: MockGroq, **changes: Any
) -> AsyncIterator[tuple[str, TurnLimiter]]:
    """Run another worker on this Redis; yield its URL and its limiter."""
    runner = create_runner(new_settings(redis_url, groq.url, **changes))
    async with running(runner) as url:
        yield url, runner.app[SERVICES].limiter
