"""Invalid requests: the shape and status of the error, and no side effects."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from aiohttp import ClientSession
from redis.asyncio import Redis

from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq

JSON = {"Content-Type": "application/json"}
CHAT = f"{BASE}/chat"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def api(shared_api: ClientSession) -> ClientSession:
    """No request of these tests changes the service."""
    return shared_api


@pytest_asyncio.fixture(loop_scope="module")
async def no_side_effects(
    api: ClientSession, shared_redis_url: str, shared_groq: MockGroq
) -> AsyncIterator[None]:
    """Check after the test: nothing is stored, Groq has no request, the service still responds."""
    async with Redis.from_url(shared_redis_url, protocol=2) as redis:
        keys, requests = set(await redis.keys()), len(shared_groq.requests)
        yield
        assert set(await redis.keys()) <= keys
        assert len(shared_groq.requests) == requests
    async with api.post(CHAT, json={"message": "Hello"}) as response:
        assert response.status == 200


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({}, "message"),
    ({"message": None}, "message"),
    ({"message": 5}, "message"),
    ({"message": ["a"]}, "message"),
    ({"message": ""}, "message"),
    ({"message": " \n\t\u2003"}, "message"),
    ({"message": "x" * 100_001}, "message"),
    ({"message": "a", "model": "no spaces"}, "model"),
    ({"message": "a", "model": "m" * 129}, "model"),
    ({"message": "a", "model": "model\n"}, "model"),
    ({"message": "a", "session_id": ""}, "session_id"),
    ({"message": "a", "session_id": "-starts-badly"}, "session_id"),
    ({"message": "a", "session_id": "has space"}, "session_id"),
    ({"message": "a", "session_id": "ü"}, "session_id"),
    ({"message": "a", "session_id": "s" * 129}, "session_id"),
    ({"message": "a", "session_id": 7}, "session_id"),
    ({"message": "a", "system_prompt": ""}, "system_prompt"),
    ({"message": "a", "system_prompt": "x" * 100_001}, "system_prompt"),
    ({"message": "a", "temperature": -0.1}, "temperature"),
    ({"message": "a", "temperature": 2.1}, "temperature"),
    ({"message": "a", "temperature": "0.5"}, "temperature"),
    ({"message": "a", "temperature": True}, "temperature"),
    ({"message": "a", "top_p": 1.1}, "top_p"),
    ({"message": "a", "max_completion_tokens": 0}, "max_completion_tokens"),
    ({"message": "a", "max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"message": "a", "max_completion_tokens": 10**30}, "max_completion_tokens"),
    ({"message": "a", "context": -1}, "context"),
    ({"message": "a", "context": 1001}, "context"),
    ({"message": "a", "colour": "red"}, "colour"),
]


@pytest.mark.usefixtures("no_side_effects")
@pytest.mark.parametrize(("body", "param"), FIELDS)
async def test_an_invalid_field_is_rejected_with_its_name(
    api: ClientSession, body: Any, param: str
) -> None:
    error = await assert_error(await api.post(CHAT, json=body), 422, "invalid_field", param=param)
    assert [detail["param"] for detail in error["details"]] == [param]


@pytest.mark.usefixtures("no_side_effects")
async def test_every_invalid_field_is_named_and_no_value_is_quoted(api: ClientSession) -> None:
    body = {"message": " ", "temperature": 77.125, "secret-plan": "do not repeat"}
    response = await api.post(CHAT, json=body)

    error = await assert_error(response, 422, "invalid_field", param="message")
    assert {detail["param"] for detail in error["details"]} == set(body)
    text = await response.text()
    assert "do not repeat" not in text
    assert "77.125" not in text


@pytest.mark.usefixtures("no_side_effects")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"message": "a"',
        b"message=a",
        b'{"message": "\xff"}',
        b"[" * 100_000,
        b'\xef\xbb\xbf{"message": "a"}',
    ],
)
async def test_malformed_json_is_a_400(api: ClientSession, body: bytes) -> None:
    await assert_error(await api.post(CHAT, data=body, headers=JSON), 400, "malformed_json")


@pytest.mark.usefixtures("no_side_effects")
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"message": "half \\ud83d"}', "message"),
        (b'{"message": "a", "session_id": "\\udc00"}', "session_id"),
        (b'{"message": "a", "temperature": NaN}', "temperature"),
        (b'{"message": "a", "temperature": 1e999}', "temperature"),
        (b'{"message": "a", "context": ' + b"9" * 5000 + b"}", "context"),
    ],
)
async def test_json_with_a_value_that_no_field_accepts_is_a_422(
    api: ClientSession, body: bytes, param: str
) -> None:
    response = await api.post(CHAT, data=body, headers=JSON)
    await assert_error(response, 422, "invalid_field", param=param)


@pytest.mark.usefixtures("no_side_effects")
@pytest.mark.parametrize("name", ["\\ud800", "x" * 10_000])
async def test_an_unprintable_or_long_field_name_causes_a_short_error(
    api: ClientSession, name: str
) -> None:
    body = f'{{"message": "a", "{name}": 1}}'.encode()
    response = await api.post(CHAT, data=body, headers=JSON)
    assert response.status in {400, 422}
    assert len(await response.read()) < 1000


@pytest.mark.usefixtures("no_side_effects")
async def test_the_error_for_too_many_invalid_fields_does_not_list_them(api: ClientSession) -> None:
    body = json.dumps({"message": "a", **{f"f{number}": 1 for number in range(99_000)}})
    response = await api.post(CHAT, data=io.BytesIO(body.encode()), headers=JSON)
    error = await assert_error(response, 422, "invalid_field")
    assert error["message"] == "More than 50 fields are invalid."


@pytest.mark.usefixtures("no_side_effects")
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "chat"), ("DELETE", "history/s"), ("GET", "sessions/s")],
)
async def test_an_unknown_query_parameter_is_rejected_with_its_name(
    api: ClientSession, method: str, path: str
) -> None:
    json_body = {"message": "a"} if method == "POST" else None
    response = await api.request(method, f"{BASE}/{path}?colour=red", json=json_body)
    await assert_error(response, 422, "invalid_field", param="colour")


async def test_a_request_that_expects_100_continue_is_accepted(api: ClientSession) -> None:
    async with api.post(CHAT, json={"message": "a"}, expect100=True) as response:
        assert response.status == 200


@pytest.mark.usefixtures("no_side_effects")
async def test_an_unknown_expectation_is_rejected(api: ClientSession) -> None:
    for path in (f"{BASE}/sessions", "/healthz", "/nowhere", CHAT):
        response = await api.get(path, headers={"Expect": "miracles", "X-Request-ID": "mine"})
        error = await assert_error(response, 417, "expectation_failed")
        assert error["request_id"] == "mine"


@pytest.mark.usefixtures("no_side_effects")
@pytest.mark.parametrize("value", ["[]", '"text"', "5", "null", "true"])
async def test_json_that_is_not_an_object_is_a_422(api: ClientSession, value: str) -> None:
    response = await api.post(CHAT, data=value, headers=JSON)
    await assert_error(response, 422, "invalid_field")


@pytest.mark.usefixtures("no_side_effects")
@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/octet-stream",
        "multipart/form-data; boundary=x",
        "nonsense",
    ],
)
async def test_an_unsupported_content_type_is_a_415(api: ClientSession, content_type: str) -> None:
    body = json.dumps({"message": "a"}).encode()
    response = await api.post(CHAT, data=body, headers={"Content-Type": content_type})
    await assert_error(response, 415, "unsupported_media_type")


@pytest.mark.usefixtures("no_side_effects")
async def test_a_missing_content_type_is_a_415(api: ClientSession) -> None:
    response = await api.post(CHAT, data=b"{}", skip_auto_headers=["Content-Type"])
    await assert_error(response, 415, "unsupported_media_type")


QUERIES = [
    ("", "message"),
    ("message=", "message"),
    ("message=%20", "message"),
    ("message=a&temperature=warm", "temperature"),
    ("message=a&temperature=nan", "temperature"),
    ("message=a&temperature=3", "temperature"),
    ("message=a&context=1.5", "context"),
    ("message=a&context=", "context"),
    ("message=a&session_id=a%2Fb", "session_id"),
    ("message=a&colour=red", "colour"),
    ("message=a&message=b", "message"),
    ("message=%FF", None),
    ("&".join(f"f{number}=1" for number in range(200)), None),
]


@pytest.mark.usefixtures("no_side_effects")
@pytest.mark.parametrize(("query", "param"), QUERIES)
async def test_an_invalid_query_parameter_is_rejected_with_its_name(
    api: ClientSession, query: str, param: str | None
) -> None:
    response = await _post_raw(api, f"{BASE}/simple-chat?{query}")
    if param is None:
        assert response == (400, "malformed_query", None)
    else:
        assert response == (422, "invalid_field", param)


@pytest.mark.usefixtures("no_side_effects")
@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("history/has%20space", "session_id"),
        ("history/a%2Fb", "session_id"),
        ("history/%00", "session_id"),
        (f"history/{'s' * 129}", "session_id"),
        ("history/s?limit=0", "limit"),
        ("history/s?limit=1001", "limit"),
        ("history/s?limit=ten", "limit"),
        ("history/s?order=up", "order"),
        ("history/s?after=xyz", "after"),
        ("history/s?before=660DFF5B917F6C5DE", "before"),
        ("history/s?offset=3", "offset"),
        ("sessions?limit=-1", "limit"),
        ("sessions?after=a@warm", "after"),
        ("sessions?after=a@nan", "after"),
        ("sessions/has%20space", "session_id"),
    ],
)
async def test_an_invalid_session_id_or_page_parameter_is_rejected_with_its_name(
    api: ClientSession, path: str, param: str
) -> None:
    await assert_error(await api.get(f"{BASE}/{path}"), 422, "invalid_field", param=param)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", f"{BASE}/chat", {"POST"}),
        ("PUT", f"{BASE}/chat", {"POST"}),
        ("GET", f"{BASE}/simple-chat", {"POST"}),
        ("POST", f"{BASE}/history/s", {"DELETE", "GET", "HEAD"}),
        ("DELETE", f"{BASE}/sessions", {"GET", "HEAD"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("OPTIONS", f"{BASE}/chat", {"POST"}),
    ],
)
async def test_a_wrong_method_is_a_405_with_the_allowed_methods(
    api: ClientSession, method: str, path: str, allowed: set[str]
) -> None:
    response = await api.request(method, path)
    await assert_error(response, 405, "method_not_allowed")
    assert set(response.headers["Allow"].split(",")) == allowed


@pytest.mark.parametrize(
    "path", ["/nope", f"{BASE}/chat/", f"{BASE}/history", f"{BASE}/history/a/b"]
)
async def test_an_unknown_path_is_a_404(api: ClientSession, path: str) -> None:
    await assert_error(await api.get(path), 404, "not_found")


@pytest.mark.parametrize(
    "request_text", ["NONSENSE\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /\x00 HTTP/1.1\r\n\r\n"]
)
async def test_malformed_http_is_a_400_with_the_shape_of_all_errors(
    api: ClientSession, request_text: str
) -> None:
    head, body = await _send_raw(api, request_text)

    assert head.startswith("HTTP/1.0 400 Bad Request")
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("bad_request", "invalid_request_error")
    assert f"X-Request-ID: {error['request_id']}" in head


async def test_a_query_with_a_message_of_5000_escaped_characters_is_accepted(
    api: ClientSession,
) -> None:
    response = await _post_raw(api, f"{BASE}/simple-chat?message={'%F0%9F%98%80' * 5000}")
    assert response == (200, None, None)


async def _post_raw(api: ClientSession, target: str) -> tuple[int, str | None, str | None]:
    """Send a request target unchanged; a client library would normalise it."""
    head, body = await _send_raw(
        api,
        f"POST {target} HTTP/1.1\r\nHost: localhost\r\n"
        "Connection: close\r\nContent-Length: 0\r\n\r\n",
    )
    error = json.loads(body).get("error", {})
    return int(head.split(" ")[1]), error.get("code"), error.get("param")


async def _send_raw(api: ClientSession, text: str) -> tuple[str, str]:
    address = urlsplit(str(api._base_url))
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(text.encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head, body
