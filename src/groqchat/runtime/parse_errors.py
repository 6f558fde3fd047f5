"""Errors for requests that aiohttp cannot parse."""

from aiohttp.http_exceptions import (
    BadHttpMessage,
    ContentEncodingError,
    HttpProcessingError,
    LineTooLong,
)

from groqchat.http.errors import UNSUPPORTED_ENCODING, ApiError, api_error_for_status

# Many proxies accept 8 to 16 KiB. A longer message belongs into the body of `POST /chat`.
MAX_REQUEST_LINE_BYTES = 65_536

# The longest path of a route has a session id of 128 characters, which may be percent-encoded. The
# time that aiohttp takes for an unknown path grows with the square of its length.
MAX_PATH_CHARS = 2048

URI_TOO_LONG = api_error_for_status(414)
HEAD_TOO_LARGE = api_error_for_status(431)
INCOMPLETE_BODY = ApiError(
    status=400,
    code="incomplete_body",
    message="The connection ended before the end of the body.",
    closes=True,
)


def parse_error(error: HttpProcessingError, status: int) -> ApiError:
    """Return the error for an exception of aiohttp's parser, which names a status."""
    if isinstance(error, ContentEncodingError):
        # Brotli or Zstandard, whose libraries are not installed.
        return UNSUPPORTED_ENCODING
    if isinstance(error, LineTooLong):
        is_request_line = error.args[1] == MAX_REQUEST_LINE_BYTES
        return URI_TOO_LONG if is_request_line else HEAD_TOO_LARGE
    if isinstance(error, BadHttpMessage) and error.message == "Too many headers received":
        return HEAD_TOO_LARGE
    return api_error_for_status(status)
