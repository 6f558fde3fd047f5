"""One line for each request, without its query: that may hold a message."""

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

MS_PER_S = 1000


class AccessLogger(AbstractAccessLogger):
    """Logs who asked for what, and what became of it."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log one request; `time` is in seconds."""
        self.logger.info(
            "%s %s %s %d %d bytes %.1f ms",
            request.remote,
            request.method,
            request.path,
            response.status,
            response.body_length,
            time * MS_PER_S,
        )
