"""The server process: serves the application until a signal stops it."""

import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

from groqchat import __version__
from groqchat.app import create_app
from groqchat.errors import ConfigurationError
from groqchat.http.access_log import access_logger
from groqchat.http.cors import headers_without_request
from groqchat.http.proxies import PROXIES
from groqchat.http.state import SERVICES
from groqchat.runtime.connections import ConnectionLimits
from groqchat.runtime.file_limit import raise_file_limit
from groqchat.runtime.gc_tuning import tuned_gc
from groqchat.runtime.parse_errors import MAX_REQUEST_LINE_BYTES
from groqchat.runtime.runner import Runner
from groqchat.runtime.site import Site
from groqchat.runtime.start_log import log_addresses
from groqchat.settings import Settings

# If no file descriptor is left, the event loop reports an error for each waiting client.
LOG_INTERVAL_S = 10.0

log = logging.getLogger("groqchat")


def create_runner(settings: Settings, max_connections: int | None = None) -> Runner:
    """Return the runner of the application; its `setup` opens all resources."""
    app = create_app(settings)
    limits = ConnectionLimits(
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        write_timeout_s=settings.stream_write_timeout_s,
        max_connections=max_connections or settings.max_connections,
        max_per_address=settings.max_connections_per_address,
        max_buffered_bytes=settings.max_request_buffer_bytes,
        max_body_bytes=settings.max_body_bytes,
        is_proxy=app[PROXIES].is_trusted,
    )
    return Runner(
        app,
        limits,
        error_headers=headers_without_request(settings.cors_allowed_origins),
        access_log=logging.getLogger("aiohttp.access") if settings.access_log else None,
        access_log_class=access_logger(settings.access_log_sample_rate, app[PROXIES]),
        keepalive_timeout=settings.keepalive_timeout_s,
        max_line_size=MAX_REQUEST_LINE_BYTES,
    )


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop of uvloop if it is installed: 20 % more turns on the same core."""
    try:
        import uvloop  # noqa: PLC0415 - not available on every system
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def stop_signal(end: Callable[[], object] = lambda: None) -> asyncio.Event:
    """Return an event that SIGINT or SIGTERM sets; a second SIGINT ends the process at once.

    Each further SIGINT calls `end` and raises KeyboardInterrupt in the event loop. The second one
    thus ends `asyncio.Runner.run`, and the runner cancels all tasks, which close their resources.
    The third one ends the process even if they cannot.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    is_interrupted = False

    def interrupt() -> None:
        nonlocal is_interrupted
        stop.set()
        if is_interrupted:
            log.warning("interrupted again: groqchat ends without waiting for running turns")
            end()
            raise KeyboardInterrupt
        is_interrupted = True

    # One handler for every SIGINT: uvloop calls it twice for two signals that arrive at once, and
    # Python's own handler would raise KeyboardInterrupt in a task that is just closing a resource.
    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    return stop


async def serve(settings: Settings, *, as_worker: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, then drain the running turns and close all resources.

    A worker shares its port with other workers, and stops when its standard input is closed.
    """
    stop = stop_signal()
    if as_worker:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _stop_if_orphaned, stop)
    max_connections = raise_file_limit(settings.max_concurrent_turns, settings.max_connections)
    asyncio.get_running_loop().set_exception_handler(_throttled_exception_handler())
    runner = create_runner(settings, max_connections)
    log.info("groqchat %s is starting", __version__)
    try:
        if await _run_unless_stopped(runner.setup(), stop):
            port = await _listen(runner, settings, reuse_port=as_worker)
            if as_worker:
                # The supervisor waits for this line.
                sys.stdout.write("ready\n")
                sys.stdout.flush()
            else:
                log_addresses(settings.host, port)
            limiter = runner.app[SERVICES].limiter
            async with tuned_gc(lambda: len(limiter)):
                await stop.wait()
                log.info("groqchat is stopping")
                await runner.drain()
    except asyncio.CancelledError:
        runner.skip_drain()
        raise
    finally:
        await _close(runner)


async def _close(runner: Runner) -> None:
    """Close all resources, even if a second SIGINT cancels this task meanwhile."""
    try:
        await runner.cleanup()
    except asyncio.CancelledError:
        runner.skip_drain()
        # The first attempt may have ended before it closed the application.
        await runner.cleanup()
        raise


async def _run_unless_stopped(start: Coroutine[None, None, None], stop: asyncio.Event) -> bool:
    """Run the startup, which may take minutes; return False if `stop` is set before its end."""
    starting = asyncio.create_task(start)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting])
    if stop.is_set():
        # Retrieves the exception of a failed startup, so that asyncio does not log it.
        starting.cancelled() or starting.exception()
        return False
    starting.result()
    return True


def _throttled_exception_handler() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return an exception handler that logs a lack of file descriptors once in LOG_INTERVAL_S."""
    logged_at = -LOG_INTERVAL_S

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal logged_at
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in {errno.EMFILE, errno.ENFILE}:
            loop.default_exception_handler(context)
        elif loop.time() - logged_at >= LOG_INTERVAL_S:
            logged_at = loop.time()
            log.error("cannot accept connections: %s", error.strerror)

    return handle


def listen_error(host: str, port: int, error: OSError) -> ConfigurationError:
    """Return the error for an address that is in use or not allowed."""
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error
    return ConfigurationError(f"cannot listen on {host}:{port}: {reason}")


def _stop_if_orphaned(stop: asyncio.Event) -> None:
    """Stop this worker, because its supervisor has ended."""
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    stop.set()


async def _listen(runner: web.AppRunner, settings: Settings, *, reuse_port: bool) -> int:
    """Open the port and return it."""
    site = Site(runner, settings.host, settings.port, reuse_port=reuse_port)
    try:
        await site.start()
    except OSError as error:
        raise listen_error(settings.host, settings.port, error) from error
    return int(runner.addresses[0][1])
