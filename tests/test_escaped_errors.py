"""Errors that no middleware turns into a response."""

import json
import logging

import pytest
from aiohttp import ClientSession, web
from aiohttp.typedefs import Handler

from groqchat.runtime.server import create_runner
from tests.support.in_process import new_settings, running
from tests.support.raw_http import connect


@web.middleware
async def broken(request: web.Request, handler: Handler) -> web.StreamResponse:
    raise RuntimeError("a defect")


async def ask_broken(redis_url: str, *, outermost: bool) -> tuple[int, dict[str, str], bytes]:
    """Return the response of a service whose outermost or innermost middleware fails."""
    runner = create_runner(new_settings(redis_url, "offline:"))
    middlewares = runner.app.middlewares
    middlewares.insert(0 if outermost else len(middlewares), broken)
    async with running(runner) as url, connect(url) as one:
        await one.send("GET /health%0D%1Bz HTTP/1.1", "Host: localhost")
        return await one.response()


async def test_an_error_that_escapes_is_logged_with_its_traceback_and_request_id(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, headers, body = await ask_broken(redis_url, outermost=True)
    assert status == 500
    assert json.loads(body)["error"]["code"] == "internal_error"
    assert json.loads(body)["error"]["request_id"] == headers["X-Request-ID"]
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    # Percent-encoded, so a client cannot write a line break or a terminal sequence to the log.
    assert record.getMessage() == "GET /health%0D%1Bz failed"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)


async def test_malformed_http_is_logged_without_its_text(
    api: ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with connect(api) as one:
            await one.send("SECRET-TEXT")
            assert await one.error() == (400, "bad_request", "close")
    (record,) = [one for one in caplog.records if "malformed" in one.getMessage()]
    assert record.levelno == logging.INFO
    assert "SECRET" not in record.getMessage()
    assert record.exc_info is None


async def test_an_error_of_a_handler_is_logged_with_the_encoded_path(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, *_ = await ask_broken(redis_url, outermost=False)
    assert status == 500
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert record.getMessage() == "GET /health%0D%1Bz failed"
