"""Endpoint declarations: the annotations of a handler declare its request and response models."""

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar, cast, get_args, get_type_hints

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_exceptions import ContentEncodingError, TransferEncodingError
from pydantic import BaseModel, ValidationError

from groqchat.errors import GroqChatError
from groqchat.fields import MAX_CHARS_PLACEHOLDER
from groqchat.http.error_models import ErrorResponse
from groqchat.http.errors import (
    UNSUPPORTED_ENCODING,
    UNSUPPORTED_TRANSFER_ENCODING,
    ApiError,
    RequestError,
    reject,
    validation_error,
)
from groqchat.http.expectations import handle_expect, send_continue
from groqchat.http.parameters import parse_headers, parse_query, parse_strings
from groqchat.http.state import SERVICES
from groqchat.models import NoQuery
from groqchat.services.turns.running_bodies import (
    MIN_COUNTED_BYTES,
    SMALL_BODY_BYTES,
    count_values,
    memory_of,
)

Handler = Callable[..., Awaitable[BaseModel | web.StreamResponse]]
AnyHandler = TypeVar("AnyHandler", bound=Handler)

JSON = "application/json"
# The pattern of a path parameter of aiohttp, as in `{model:.+}`.
PARAMETER_PATTERN = re.compile(r":[^}]+\}")
PARAMETERS = frozenset({"path", "query", "headers", "body"})
# The content encodings that aiohttp decodes.
ENCODINGS = frozenset({"identity", "gzip", "deflate"})
CHUNKED = "chunked"
# By the number of commas and brackets. Each value takes about a microsecond to parse. Text with as
# many of them exceeds the context window of every model.
MAX_VALUES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDocs:
    """Documentation of a route that its annotations do not contain.

    `errors`: the error classes that it raises, subclasses included. `error_model`: the model of
    its error responses. `media_type`: the type of a response that is not JSON. `stream` and
    `events`: the description and the models of its server-sent events. `no_content`: when it
    returns 204. `forwards_upstream_errors`: whether it returns Groq's errors with any status.
    """

    errors: Sequence[type[GroqChatError]] = ()
    error_model: type[BaseModel] = ErrorResponse
    media_type: str | None = None
    stream: str = ""
    events: Sequence[type[BaseModel]] = ()
    no_content: str = ""
    forwards_upstream_errors: bool = False


NO_DOCS = RouteDocs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A route with the models of its request and response."""

    method: str
    path: str
    path_model: type[BaseModel] | None
    query_model: type[BaseModel] | None
    headers_model: type[BaseModel] | None
    body_model: type[BaseModel] | None
    response_model: type[BaseModel] | None
    streams: bool
    docs: RouteDocs
    handler: Handler

    @property
    def tag(self) -> str:
        """The OpenAPI tag: the name of the handler's module."""
        return self.handler.__module__.rpartition(".")[2].replace("_", " ")

    @property
    def name(self) -> str:
        """The OpenAPI operation id, which generated clients use as a name."""
        return f"{self.tag.replace(' ', '_')}_{self.handler.__name__}"

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return (inspect.getdoc(self.handler) or "").partition("\n")[0]

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Validate the request, call the handler, return its response."""
        app = request.app
        services = app[SERVICES]
        limits = {MAX_CHARS_PLACEHOLDER: services.settings.chat_max_message_chars}
        arguments: dict[str, BaseModel] = {}
        size = 0
        if self.path_model is not None:
            arguments["path"] = parse_strings(self.path_model, request.match_info, limits)
        if self.query_model is not None:
            arguments["query"] = parse_strings(self.query_model, parse_query(request), limits)
        elif request.query_string:
            parse_strings(NoQuery, parse_query(request), limits)
        if self.headers_model is not None:
            arguments["headers"] = parse_headers(self.headers_model, request, limits)
        if self.body_model is not None:
            arguments["body"], size = await _parse_body(self.body_model, request, limits)
        if size > SMALL_BODY_BYTES:
            with services.limiter.bodies.holding(size):
                response = await self.handler(request, services, **arguments)
        else:
            response = await self.handler(request, services, **arguments)
        # Most responses are models, and a type check with an abstract class takes 0.7 us.
        if type(response) is not self.response_model and isinstance(response, web.StreamResponse):
            return response
        # CORS headers are added by a signal.
        return JsonResponse(response, has_signal=bool(app.on_response_prepare))


class JsonResponse(web.Response):
    """A model as JSON.

    aiohttp prepares every response for streams, compression and cookies, which takes 5 % of the
    time of a turn. This one is prepared for them only if its request is unusual.
    """

    _writer: AbstractStreamWriter | None = None

    def __init__(self, model: BaseModel, *, has_signal: bool) -> None:
        super().__init__(body=model.model_dump_json().encode(), content_type=JSON)
        self._has_signal = has_signal

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Prepare the head of the response."""
        if not self._is_usual(cast("web.Request", request)):
            return await super().prepare(request)
        headers = self.headers
        headers[hdrs.CONTENT_LENGTH] = str(len(cast("bytes", self.body)))
        headers[hdrs.DATE] = rfc822_formatted_time()
        headers[hdrs.SERVER] = SERVER_SOFTWARE
        self._writer = request.writer
        await self._writer.write_headers("HTTP/1.1 200 OK", headers)
        return self._writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Send head and body with one write."""
        if self._writer is None:
            await super().write_eof(data)
        else:
            await self._writer.write_eof(cast("bytes", self.body))

    def _is_usual(self, request: web.Request) -> bool:
        """Return whether a whole body follows on a connection that stays open."""
        return (
            not self._has_signal
            and request.keep_alive
            and self.keep_alive is not False
            and request.version == HttpVersion11
            and request.method != hdrs.METH_HEAD
            and isinstance(self.body, bytes)
        )

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection stays open after the response; None if aiohttp decides."""
        return super().keep_alive if self._writer is None else True

    @property
    def body_length(self) -> int:
        """The number of bytes that were sent."""
        return super().body_length if self._writer is None else self._writer.output_size

    @property
    def prepared(self) -> bool:
        """Whether the head is prepared."""
        return super().prepared or self._writer is not None


def endpoint(
    routes: web.RouteTableDef,
    method: str,
    path: str,
    *,
    docs: RouteDocs = NO_DOCS,
) -> Callable[[AnyHandler], AnyHandler]:
    """Add a handler to `routes`; its `path`, `query`, `headers` and `body` are validated.

    The handler receives the request and the services first. It returns a model, which is sent as
    JSON, or a response.
    """

    def declare(handler: AnyHandler) -> AnyHandler:
        hints = get_type_hints(handler)
        # Request and services are passed by position.
        unknown = set(list(inspect.signature(handler).parameters)[2:]) - PARAMETERS
        returned = get_args(hints["return"]) or (hints["return"],)
        if unknown:
            raise TypeError(f"{handler.__name__}: unknown parameters {unknown}")
        declared = Endpoint(
            method=method,
            path=PARAMETER_PATTERN.sub("}", path),
            path_model=hints.get("path"),
            query_model=hints.get("query"),
            headers_model=hints.get("headers"),
            body_model=hints.get("body"),
            response_model=next((kind for kind in returned if issubclass(kind, BaseModel)), None),
            streams=web.StreamResponse in returned,
            docs=docs,
            handler=handler,
        )
        # aiohttp's GET routes accept HEAD too, which load balancers and monitors send.
        if method == hdrs.METH_GET and not declared.streams:
            add = routes.get(path, expect_handler=handle_expect)
        elif method == hdrs.METH_GET:
            add = routes.get(path, allow_head=False, expect_handler=handle_expect)
        else:
            add = routes.route(method, path, expect_handler=handle_expect)
        add(declared.respond)
        return handler

    return declare


def _check_content_type(request: web.Request) -> None:
    if request.content_type != JSON or hdrs.CONTENT_TYPE not in request.headers:
        reject(415, "unsupported_media_type", f"The content type of the body must be {JSON}.")
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        reject(415, "unsupported_media_type", "The charset of the body must be UTF-8.")


async def _read(request: web.Request) -> bytes:
    headers = request.headers
    if hdrs.CONTENT_ENCODING in headers and headers[hdrs.CONTENT_ENCODING].lower() not in ENCODINGS:
        raise RequestError(UNSUPPORTED_ENCODING)
    if hdrs.TRANSFER_ENCODING in headers and headers[hdrs.TRANSFER_ENCODING].lower() != CHUNKED:
        # aiohttp ignores every coding but the last one.
        raise RequestError(UNSUPPORTED_TRANSFER_ENCODING)
    if hdrs.EXPECT in headers:
        await send_continue(request)
    try:
        return await request.read()
    except (web.RequestPayloadError, ContentEncodingError, TransferEncodingError):
        # The rest of the connection cannot be parsed either, but aiohttp would try.
        request.content.feed_eof()
        message = "The body does not match its Content-Encoding or Transfer-Encoding header."
        error = ApiError(status=400, code="malformed_body", message=message, closes=True)
        raise RequestError(error) from None
    except ConnectionError:
        reject(400, "incomplete_body", "The connection ended before the end of the body.")


async def _parse_body(
    model: type[BaseModel], request: web.Request, limits: Mapping[str, int]
) -> tuple[BaseModel, int]:
    """Return the body of a request as a model, and about how much memory it needs."""
    # Nearly every client sends exactly this header, and the full check takes time.
    if request.headers.get(hdrs.CONTENT_TYPE) != JSON:
        _check_content_type(request)
    body = await _read(request)
    size = 0
    if len(body) > MIN_COUNTED_BYTES:
        values = count_values(body)
        if values > MAX_VALUES:
            reject(413, "body_too_large", f"The body contains more than {MAX_VALUES} values.")
        size = memory_of(body, values)
    try:
        parsed = model.model_validate_json(body, strict=True, context=limits)
    except ValidationError as error:
        # A parse error is always the only error.
        if error.error_count() == 1 and error.errors()[0]["type"] == "json_invalid":
            _reject_malformed(model, body, limits)
        raise RequestError(validation_error(error, model)) from None
    _check_constants(body)
    return parsed, size


def _reject_malformed(model: type[BaseModel], body: bytes, limits: Mapping[str, int]) -> NoReturn:
    """Reject a body that pydantic cannot parse.

    A lone surrogate is valid JSON: it makes a field invalid, not the body.
    """
    try:
        value = json.loads(body, parse_int=float)
        model.model_validate(value, strict=True, context=limits)
    except ValidationError as error:
        raise RequestError(validation_error(error, model)) from None
    except (ValueError, RecursionError):
        pass
    reject(400, "malformed_json", "The body is not valid JSON.")


def _check_constants(body: bytes) -> None:
    """Reject NaN and Infinity, which pydantic accepts, but not Groq."""
    # Twice as fast as `in`, which first raises an error inside of Python.
    if body.find(b"NaN") >= 0 or body.find(b"Infinity") >= 0:
        try:
            json.loads(body, parse_constant=_reject_constant)
        except ValueError:
            reject(400, "malformed_json", "The body is not valid JSON.")


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)
