"""The end of a stream after `[DONE]`: read in the background, so that its connection is reused."""

import asyncio

import aiohttp

# How long a stream may pause between its finish reason and `[DONE]`. The answer is complete then.
END_WAIT_S = 2.0
# Usually only the last chunk of the chunked body is missing, and it arrives within milliseconds. A
# server that needs longer than this, or sends more, costs more than a new connection.
MAX_DRAIN_S = 1.0
MAX_DRAIN_BYTES = 64 * 1024
# Limits the connections that are neither idle nor in use.
MAX_DRAINING = 128


class StreamEnds:
    """Reads the ends of streams whose answers are complete, and returns their connections."""

    def __init__(self) -> None:
        self._responses: dict[asyncio.Task[None], aiohttp.ClientResponse] = {}

    def release(self, response: aiohttp.ClientResponse) -> None:
        """Return the connection of a response to the pool after the end of its body, or close it.

        Does not wait. The caller has read everything that it needs, and reads no more.
        """
        # aiohttp has returned the connection already if the body has ended.
        if response.closed:
            return
        if len(self._responses) >= MAX_DRAINING:
            response.close()
            return
        task = asyncio.create_task(_drain(response))
        self._responses[task] = response
        # A done callback also runs if the task is cancelled before its first step.
        task.add_done_callback(self._finish)

    async def aclose(self) -> None:
        """Close the connections of the remaining responses."""
        tasks = list(self._responses)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finish(self, task: asyncio.Task[None]) -> None:
        # Has no effect if the body has ended.
        self._responses.pop(task).close()


async def _drain(response: aiohttp.ClientResponse) -> None:
    size = 0
    try:
        async with asyncio.timeout(MAX_DRAIN_S):
            while size <= MAX_DRAIN_BYTES and (data := await response.content.readany()):
                size += len(data)
    except (aiohttp.ClientError, OSError):
        # The answer is complete, so an error here concerns nobody.
        pass
