"""A client that disconnects while its request waits for the end of a turn."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeAlias

from aiohttp import web

from groqchat.http.event_stream import INSPECTION_INTERVAL_S, has_ended_sending

FinalEvent: TypeAlias = Coroutine[None, None, bytes]
Leave: TypeAlias = Callable[[], Awaitable[bool | None]]

log = logging.getLogger(__name__)


async def wait_or_leave(
    request: web.Request, final_event: FinalEvent, leave: Leave
) -> bytes | None:
    """Return a turn's final event; call `leave` if the client of `request` disconnects.

    `leave` returns whether the turn is stopped and therefore ends in a moment, or None if the
    request does not wait for a turn yet. If the turn continues for other clients, closes the
    connection and returns None.
    """
    # The event is awaited in this task, whose slot is shared by a turn that it starts.
    departure = _Departure(request, leave)
    watching = asyncio.create_task(departure.watch())
    try:
        return await final_event
    except asyncio.CancelledError:
        if not departure.has_ended_request:
            raise
        departure.task.uncancel()
        if request.transport is not None:
            request.transport.abort()
        return None
    finally:
        departure.is_over = True
        if not departure.is_leaving:
            watching.cancel()
        await asyncio.wait([watching])


class _Departure:
    """Watches for a disconnect of the client, and ends a request that need not wait any more.

    `is_over`: the request has its event. `is_leaving`: a call of `leave` must not be interrupted.
    """

    def __init__(self, request: web.Request, leave: Leave) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request must run in a task")
        self.task: asyncio.Task[object] = task
        self.is_over = False
        self.is_leaving = False
        self.has_ended_request = False
        self._request = request
        self._leave = leave

    async def watch(self) -> None:
        is_stopped: bool | None = None
        while is_stopped is None:
            if self._has_disconnected():
                is_stopped = await self._try_leave()
            if is_stopped is None:
                await asyncio.sleep(INSPECTION_INTERVAL_S)
        if not (is_stopped or self.is_over):
            self.has_ended_request = True
            self.task.cancel()

    def _has_disconnected(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing() or has_ended_sending(self._request)

    async def _try_leave(self) -> bool | None:
        self.is_leaving = True
        try:
            return await self._leave()
        except Exception:
            log.exception("a client that disconnected could not leave its turn")
            return False
        finally:
            self.is_leaving = False
