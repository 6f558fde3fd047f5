"""New connections while the event loop is busy."""

import asyncio
import socket
from contextlib import ExitStack

import uvloop
from aiohttp import web

from groqchat.runtime.site import ACCEPTED_PER_ITERATION, Site

CLIENTS = 10 * ACCEPTED_PER_ITERATION


async def iterations_until_accepted() -> int:
    """Return how often the event loop runs until it has accepted all connections."""
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        await Site(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        iterations = 0
        with ExitStack() as clients:
            # The kernel completes the handshakes.
            for _ in range(CLIENTS):
                clients.enter_context(socket.create_connection((host, port)))
            assert runner.server is not None
            async with asyncio.timeout(10):
                while len(runner.server.connections) < CLIENTS:
                    await asyncio.sleep(0)
                    iterations += 1
        return iterations
    finally:
        await runner.cleanup()


def test_an_iteration_of_uvloop_accepts_many_connections() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(iterations_until_accepted()) <= 3 * CLIENTS / ACCEPTED_PER_ITERATION


def test_a_closed_port_accepts_no_connection() -> None:
    async def connect() -> None:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        site = Site(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        await site.stop()
        try:
            _, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            return
        finally:
            await runner.cleanup()
        writer.close()
        raise AssertionError("the port is open")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(connect())
