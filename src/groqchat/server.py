"""Serving the application until a signal ends it."""

import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from aiohttp import web

from groqchat import __version__
from groqchat.app import BASE_PATH, create_app
from groqchat.errors import ConfigurationError
from groqchat.garbage import collected_when_quiet
from groqchat.http.access_log import access_logger
from groqchat.http.errors import http_error
from groqchat.http.request_id import REQUEST_ID_HEADER, new_request_id
from groqchat.http.state import admission_of
from groqchat.limits import raise_file_limit
from groqchat.settings import Settings

# Bursts of a few thousand clients connect at once.
BACKLOG = 4096
# A message and a system prompt in a query string, every character escaped, and the rest.
ESCAPED_BYTES_PER_CHAR = 12
OTHER_QUERY_BYTES = 8192
# Turns have ended by then; what remains is to write out their answers.
CLOSE_TIMEOUT_S = 3.0
# The event loop reports each of BACKLOG failed attempts to accept a client.
QUIET_S = 10.0

log = logging.getLogger("groqchat")


class _Protocol(web.RequestHandler):
    """HTTP in which even what does not parse as HTTP gets the one error shape."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature; it may quote the request
    ) -> web.StreamResponse:
        """Answer what no handler could, and close the connection."""
        log.info("refused what is not HTTP as we take it: %s", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun already")
        request_id = new_request_id()
        response = http_error(status).response()
        response.headers[REQUEST_ID_HEADER] = request_id
        response.force_close()
        return response


class _Runner(web.AppRunner):
    """A runner whose connections speak our protocol."""

    @property
    def server(self) -> web.Server | None:
        """What makes a protocol for each connection."""
        server = super().server
        return server and _with_protocol(server)  # type: ignore[return-value] # only ever called


def _with_protocol(server: web.Server) -> Callable[[], web.RequestHandler]:
    def make() -> web.RequestHandler:
        protocol = server()
        protocol.__class__ = _Protocol
        return protocol

    return make


def create_runner(settings: Settings) -> web.AppRunner:
    """Return what runs the application; nothing is opened before its setup."""
    return _Runner(
        create_app(settings),
        access_log=logging.getLogger("aiohttp.access") if settings.access_log else None,
        access_log_class=access_logger(settings.access_log_share),
        handler_cancellation=False,
        max_line_size=2 * settings.chat_max_message_chars * ESCAPED_BYTES_PER_CHAR
        + OTHER_QUERY_BYTES,
        shutdown_timeout=CLOSE_TIMEOUT_S,
    )


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where it is to be had: a fifth more turns on the same core."""
    try:
        import uvloop  # noqa: PLC0415 - not on every system
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def stop_signal() -> asyncio.Event:
    """Return an event that SIGINT or SIGTERM sets; a second SIGINT ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def interrupt() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    return stop


async def serve(settings: Settings, *, as_worker: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, then let turns end and close everything.

    A worker shares its port with others, and ends when its standard input does.
    """
    stop = stop_signal()
    if as_worker:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _stop_unwatched, stop)
    raise_file_limit(settings.max_turns_in_flight)
    asyncio.get_running_loop().set_exception_handler(_quieter_exception_handler())
    runner = create_runner(settings)
    log.info("groqchat %s is starting", __version__)
    try:
        if await _finishes_before(runner.setup(), stop):
            await _listen(runner, settings, reuse_port=as_worker)
            admission = admission_of(runner.app)
            async with collected_when_quiet(lambda: len(admission)):
                await stop.wait()
        log.info("groqchat is stopping")
    finally:
        await runner.cleanup()


async def _finishes_before(start: Coroutine[None, None, None], stop: asyncio.Event) -> bool:
    """Run a start, which may take minutes, unless told to stop meanwhile."""
    starting = asyncio.create_task(start)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting])
    if stop.is_set():
        # Whether it has failed as well is of no interest any more.
        starting.cancelled() or starting.exception()
        return False
    starting.result()
    return True


def _quieter_exception_handler() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return a handler that does not repeat, thousands of times, that no file is left to open."""
    said_at = -QUIET_S

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said_at
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in {errno.EMFILE, errno.ENFILE}:
            loop.default_exception_handler(context)
        elif loop.time() - said_at >= QUIET_S:
            said_at = loop.time()
            log.error("no client can be accepted: %s", error.strerror)

    return handle


def http_address(host: str, port: int) -> str:
    """Return the URL of a host, which may be an IPv6 address, and a port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def cannot_listen(host: str, port: int, error: OSError) -> ConfigurationError:
    """Return the error for an address that is taken, or not ours to take."""
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error
    return ConfigurationError(f"cannot listen on {host}:{port}: {reason}")


def _stop_unwatched(stop: asyncio.Event) -> None:
    """Stop: whoever started this worker is gone."""
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    stop.set()


async def _listen(runner: web.AppRunner, settings: Settings, *, reuse_port: bool) -> None:
    site = web.TCPSite(
        runner, settings.host, settings.port, backlog=BACKLOG, reuse_port=reuse_port or None
    )
    try:
        await site.start()
    except OSError as error:
        raise cannot_listen(settings.host, settings.port, error) from error
    host, port = runner.addresses[0][:2]
    log.info("groqchat answers at %s%s", http_address(host, port), BASE_PATH)
