"""The `Expect` header: clients that wait for 100 Continue before they send their body."""

from aiohttp import hdrs, web

from groqchat.http.errors import api_error_for_status
from groqchat.http.request_id import REQUEST_ID_HEADER, new_request_id


async def handle_expect(request: web.Request) -> web.Response | None:
    """Reject an expectation other than 100 Continue, which is sent before the body is read.

    aiohttp calls this function before the middlewares.
    """
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        return early_error(request, 417)
    return None


def early_error(request: web.BaseRequest, status: int) -> web.Response:
    """Return an error for a request that reaches no middleware, which would add its id."""
    request_id = new_request_id(request.headers.get(REQUEST_ID_HEADER, ""))
    response = api_error_for_status(status).response()
    response.headers[REQUEST_ID_HEADER] = request_id
    return response


async def send_continue(request: web.Request) -> None:
    """Ask a client for its body that waits until everything else was accepted."""
    if (request.content_length or 0) > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(request.client_max_size)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # These bytes do not count as part of the response.
    request.writer.output_size = 0
