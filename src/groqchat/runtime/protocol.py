"""Responses to malformed HTTP requests, in the JSON error format of all other errors.

aiohttp answers such requests before any middleware runs.
"""

import logging
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from groqchat.http.errors import api_error_for_status
from groqchat.http.request_id import REQUEST_ID_HEADER, new_request_id

log = logging.getLogger(__name__)


class _JsonErrorProtocol(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp passes it; the text may quote the request
    ) -> web.StreamResponse:
        """Return the response to a request that failed outside of the application.

        Nearly always aiohttp could not parse it. The response closes the connection.
        """
        request_id = new_request_id()
        log.info("malformed HTTP request rejected: %s", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has started already")
        response = api_error_for_status(status).response()
        response.headers[REQUEST_ID_HEADER] = request_id
        response.force_close()
        return response


class JsonErrorRunner(web.AppRunner):
    """A runner whose connections answer malformed requests with JSON errors."""

    @property
    def server(self) -> web.Server | None:
        """The protocol factory that asyncio calls for each connection."""
        server = super().server
        return server and _with_json_errors(server)  # type: ignore[return-value] # asyncio uses it only as a callable


def _with_json_errors(server: web.Server) -> Callable[[], web.RequestHandler]:
    def create() -> web.RequestHandler:
        protocol = server()
        # aiohttp has no option for the class of its protocols.
        protocol.__class__ = _JsonErrorProtocol
        return protocol

    return create
