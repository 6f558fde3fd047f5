"""The HTTP protocol of the server: malformed HTTP requests get the one error shape too."""

import logging
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from groqchat.http.errors import api_error_for_status
from groqchat.http.request_id import REQUEST_ID_HEADER, new_request_id

log = logging.getLogger(__name__)


class _ErrorShapeProtocol(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature; it may quote the request
    ) -> web.StreamResponse:
        """Return the response to a request that no handler could answer; close the connection."""
        log.info("malformed HTTP request rejected: %s", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has started already")
        request_id = new_request_id()
        response = api_error_for_status(status).response()
        response.headers[REQUEST_ID_HEADER] = request_id
        response.force_close()
        return response


class ErrorShapeRunner(web.AppRunner):
    """A runner whose connections use the one error shape."""

    @property
    def server(self) -> web.Server | None:
        """The factory of the protocols, which asyncio calls for each connection."""
        server = super().server
        return server and _with_error_shape(server)  # type: ignore[return-value] # asyncio only calls it


def _with_error_shape(server: web.Server) -> Callable[[], web.RequestHandler]:
    def create() -> web.RequestHandler:
        protocol = server()
        # aiohttp has no option for the class of its protocols.
        protocol.__class__ = _ErrorShapeProtocol
        return protocol

    return create
