"""The time of the event loop, moved forward by a test."""

import asyncio

import pytest


class Clock:
    """The time of the event loop, which a test can move forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real_time = loop.time
        self._offset_s = 0.0
        monkeypatch.setattr(loop, "time", lambda: real_time() + self._offset_s)

    async def advance(self, seconds: float) -> None:
        """Move the time forward and run everything that is due."""
        self._offset_s += seconds
        for _ in range(20):
            await asyncio.sleep(0)
