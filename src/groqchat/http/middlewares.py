"""The middleware around every request: its id, and errors in the one error shape."""

import logging
from dataclasses import replace
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from groqchat.errors import GroqChatError
from groqchat.http.cors import is_preflight, preflight_response
from groqchat.http.errors import (
    CONTENT_TYPE_OPTIONS,
    NOSNIFF,
    RETRY_AFTER_STATUS,
    RequestError,
    to_api_error,
)
from groqchat.http.hosts import AllowedHosts
from groqchat.http.origins import SEC_FETCH_SITE, AllowedOrigins
from groqchat.http.request_id import REQUEST_ID_HEADER, new_request_id
from groqchat.openai_paths import COMPLETIONS_PATH, MODELS_PATH
from groqchat.services.groq.errors import strip_tracebacks

# The second one is the path of OpenAI's own API.
OPENAI_PATHS = ("/openai", "/v1")
OPENAI_NOT_FOUND = (
    "This path does not exist. The OpenAI-compatible endpoints are "
    f"POST {COMPLETIONS_PATH}, GET {MODELS_PATH} and GET {MODELS_PATH}/{{model}}."
)

log = logging.getLogger(__name__)


def errors(hosts: AllowedHosts, origins: AllowedOrigins) -> Middleware:
    """Return the middleware that rejects other sites and turns exceptions into error responses."""

    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers
        request_id = new_request_id(headers.get(REQUEST_ID_HEADER, ""))
        try:
            if headers.get(hdrs.HOST) not in hosts.accepted:
                hosts.check(request)
            # Only browsers send these headers.
            if SEC_FETCH_SITE in headers or hdrs.ORIGIN in headers:
                origins.check(request)
            response = await handler(request)
        except web.HTTPException as error:
            if is_preflight(request) and origins.allows(headers.get(hdrs.ORIGIN, "")):
                response = preflight_response(request)
            else:
                response = _http_exception_response(request, error)
            strip_tracebacks(error)
        except (GroqChatError, RequestError) as error:
            response = _error_response(request, error)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.rel_url.raw_path)
            response = to_api_error(error).response()
        sent = response.headers
        sent[REQUEST_ID_HEADER] = request_id
        sent[CONTENT_TYPE_OPTIONS] = NOSNIFF
        return response

    return errors


def _http_exception_response(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    if error.status < HTTPStatus.BAD_REQUEST:
        return error
    api_error = to_api_error(error)
    if error.status == HTTPStatus.NOT_FOUND and request.path.startswith(OPENAI_PATHS):
        api_error = replace(api_error, message=OPENAI_NOT_FOUND)
    response = api_error.response()
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    return response


def _error_response(request: web.Request, error: GroqChatError | RequestError) -> web.Response:
    api_error = to_api_error(error)
    # The client causes a 501.
    if api_error.is_server_error and api_error.status != HTTPStatus.NOT_IMPLEMENTED:
        detail = error.detail if isinstance(error, GroqChatError) else ""
        # Temporary failures come in large numbers and end without an operator.
        level = logging.WARNING if api_error.status in RETRY_AFTER_STATUS else logging.ERROR
        path = request.rel_url.raw_path
        log.log(level, "%s %s: %s (%s)", request.method, path, api_error.code, detail)
    return api_error.response()
