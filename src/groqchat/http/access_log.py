"""One structured line for a request, without its query: that may hold a message."""

import random
from http import HTTPStatus

import orjson
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

MS_PER_S = 1000


class AccessLogger(AbstractAccessLogger):
    """Logs as JSON who asked for what, and what became of it."""

    # Of the requests that were served; those that the service failed are logged whatever it is.
    share = 1.0

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log one request; `time` is in seconds."""
        failed = response.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if not failed and random.random() >= self.share:  # noqa: S311 - no secret
            return
        line = {
            "remote": request.remote,
            "method": request.method,
            "path": request.path.encode(errors="replace").decode(),
            "status": response.status,
            "bytes": response.body_length,
            "ms": round(time * MS_PER_S, 1),
        }
        self.logger.info("%s", orjson.dumps(line).decode())


def access_logger(share: float) -> type[AccessLogger]:
    """Return a logger of so much of what is served, as aiohttp wants it: a class."""
    return type(AccessLogger.__name__, (AccessLogger,), {"share": share})
