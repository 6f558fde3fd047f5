"""The access log: one entry for each request, without the query.

The query may contain a message.
"""

import random
from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from groqchat.http.proxies import Proxies

MS_PER_S = 1000
# The attribute of a log record with the fields of an entry.
ACCESS_FIELDS = "access_fields"


class AccessLogger(AbstractAccessLogger):
    """Logs client address, method, path, status, size and duration of a request."""

    # The fraction of requests to log. Responses with status 5xx are always logged.
    sample_rate = 1.0
    proxies = Proxies((), "")

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log one request; `time` is in seconds."""
        failed = response.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if not failed and random.random() >= self.sample_rate:  # noqa: S311 - no secret
            return
        fields = {
            "remote": self.proxies.client_address(request),
            "method": request.method,
            # Percent-encoded: it cannot contain a line break.
            "path": request.rel_url.raw_path,
            "status": response.status,
            "bytes": response.body_length,
            "ms": round(time * MS_PER_S, 1),
        }
        self.logger.info(
            "%(remote)s %(method)s %(path)s %(status)d %(bytes)d bytes %(ms).1f ms",
            fields,
            extra={ACCESS_FIELDS: fields},
        )


def access_logger(sample_rate: float, proxies: Proxies) -> type[AccessLogger]:
    """Return an access logger with a sample rate; aiohttp requires a class."""
    options = {"sample_rate": sample_rate, "proxies": proxies}
    return type(AccessLogger.__name__, (AccessLogger,), options)
