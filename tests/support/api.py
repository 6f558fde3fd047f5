"""The API's base path, and a check for its error responses."""

from typing import Any

from aiohttp import ClientResponse

BASE = "/api/groq-chat"

TYPES = {
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "upstream_error",
    503: "unavailable_error",
    504: "upstream_error",
}


async def assert_error(
    response: ClientResponse, status: int, code: str, *, param: str | None = None
) -> dict[str, Any]:
    """Check that a response has the shape of all errors; return the error object."""
    body = await response.json()
    assert response.status == status, body
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) - {"details"} == {"message", "type", "code", "param", "request_id"}
    assert error["code"] == code
    assert error["type"] == TYPES.get(status, "invalid_request_error")
    assert error["param"] == param
    assert error["message"]
    assert error["request_id"] == response.headers["X-Request-ID"]
    assert ("Retry-After" in response.headers) == (status in {429, 503})
    return error
