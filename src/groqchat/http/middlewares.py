"""Around every request: its id, and errors in the one shape."""

import logging
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from groqchat.errors import GroqChatError
from groqchat.http.errors import RETRY_AFTER_STATUS, RequestError, wire_error
from groqchat.http.request_id import REQUEST_ID_HEADER, new_request_id

log = logging.getLogger(__name__)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id and turn whatever it raises into an error response."""
    chosen = new_request_id(request.headers.get(REQUEST_ID_HEADER, ""))
    try:
        response = await handler(request)
    except web.HTTPException as error:
        response = _refuse(error)
    except (GroqChatError, RequestError) as error:
        response = _respond(request, error)
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        response = wire_error(error).response()
    response.headers[REQUEST_ID_HEADER] = chosen
    return response


def _refuse(error: web.HTTPException) -> web.StreamResponse:
    if error.status < HTTPStatus.BAD_REQUEST:
        return error
    response = wire_error(error).response()
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    return response


def _respond(request: web.Request, error: GroqChatError | RequestError) -> web.Response:
    wire = wire_error(error)
    if wire.is_ours:
        detail = error.detail if isinstance(error, GroqChatError) else ""
        # What passes by itself, and comes in floods when it comes, is no error of ours.
        level = logging.WARNING if wire.status in RETRY_AFTER_STATUS else logging.ERROR
        log.log(level, "%s %s: %s (%s)", request.method, request.path, wire.code, detail)
    return wire.response()
