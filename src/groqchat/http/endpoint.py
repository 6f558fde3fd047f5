"""A route declared once: its path, query, body and answer are the handler's own annotations."""

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NoReturn, TypeVar, get_args, get_type_hints
from urllib.parse import parse_qsl

from aiohttp import hdrs, web
from aiohttp.http_exceptions import ContentEncodingError, TransferEncodingError
from pydantic import BaseModel, ValidationError

from groqchat.error_models import ErrorAnswer
from groqchat.errors import GroqChatError
from groqchat.http.errors import RequestError, WireError, http_error, validation_error
from groqchat.http.request_id import REQUEST_ID_HEADER, new_request_id
from groqchat.http.state import settings_of
from groqchat.models import MAX_CHARS, NoQuery
from groqchat.settings import Settings

Handler = Callable[..., Awaitable[BaseModel | web.StreamResponse]]
AnyHandler = TypeVar("AnyHandler", bound=Handler)

JSON = "application/json"
# More parameters than any route has; what is behind them is not worth reading.
MAX_QUERY_FIELDS = 100
PARAMETERS = frozenset({"path", "query", "headers", "body"})
# What aiohttp unpacks by itself.
ENCODINGS = frozenset({"identity", "gzip", "deflate"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What the description of a route needs beside its declaration.

    `errors` are those that it raises, each with all of its kind, `error_model` what they look
    like, `media_type` that of a response of its own, `stream` what its events are and `events`
    what they hold, `no_content` when there is nothing to answer. One that passes errors on has
    those of Groq's too, whatever their status.
    """

    errors: Sequence[type[GroqChatError]] = ()
    error_model: type[BaseModel] = ErrorAnswer
    media_type: str | None = None
    stream: str = ""
    events: Sequence[type[BaseModel]] = ()
    no_content: str = ""
    passes_errors_on: bool = False


NO_NOTES = Notes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What a route takes and gives."""

    method: str
    path: str
    path_model: type[BaseModel] | None
    query_model: type[BaseModel] | None
    headers_model: type[BaseModel] | None
    body_model: type[BaseModel] | None
    answer_model: type[BaseModel] | None
    streams: bool
    notes: Notes
    handler: Handler

    @property
    def tag(self) -> str:
        """What it is grouped under: the module that the handler stands in."""
        return self.handler.__module__.rpartition(".")[2].replace("_", " ")

    @property
    def name(self) -> str:
        """What a client generated from the description calls it."""
        return f"{self.tag.replace(' ', '_')}_{self.handler.__name__}"

    @property
    def summary(self) -> str:
        """What it does, in a sentence."""
        return (inspect.getdoc(self.handler) or "").partition("\n")[0]

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Validate the request, call the handler, send its answer."""
        arguments: dict[str, BaseModel] = {}
        if self.path_model is not None:
            arguments["path"] = _parse_strings(self.path_model, request.match_info, request)
        if self.query_model is not None:
            arguments["query"] = _parse_strings(self.query_model, _query_of(request), request)
        elif request.query_string:
            _parse_strings(NoQuery, _query_of(request), request)
        if self.headers_model is not None:
            arguments["headers"] = _parse_headers(self.headers_model, request)
        if self.body_model is not None:
            arguments["body"] = await _parse_body(self.body_model, request)
        answer = await self.handler(request, **arguments)
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(body=answer.model_dump_json().encode(), content_type=JSON)


def endpoint(
    routes: web.RouteTableDef,
    method: str,
    path: str,
    *,
    notes: Notes = NO_NOTES,
) -> Callable[[AnyHandler], AnyHandler]:
    """Add a handler to `routes`; its `path`, `query`, `headers` and `body` are validated.

    It returns a model to be sent as JSON, a response of its own, or has sent a stream; `notes`
    say what its annotations do not.
    """

    def declare(handler: AnyHandler) -> AnyHandler:
        hints = get_type_hints(handler)
        # The request is given by place, whatever it is called.
        unknown = set(list(inspect.signature(handler).parameters)[1:]) - PARAMETERS
        answers = get_args(hints["return"]) or (hints["return"],)
        if unknown:
            raise TypeError(f"{handler.__name__}: an endpoint has no parameter {unknown}")
        declared = Endpoint(
            method=method,
            path=path,
            path_model=hints.get("path"),
            query_model=hints.get("query"),
            headers_model=hints.get("headers"),
            body_model=hints.get("body"),
            answer_model=next((kind for kind in answers if issubclass(kind, BaseModel)), None),
            streams=web.StreamResponse in answers,
            notes=notes,
            handler=handler,
        )
        # aiohttp's own GET answers HEAD too, as balancers and monitors like to ask.
        if method == hdrs.METH_GET and not declared.streams:
            add = routes.get(path, expect_handler=answer_expectation)
        elif method == hdrs.METH_GET:
            add = routes.get(path, allow_head=False, expect_handler=answer_expectation)
        else:
            add = routes.route(method, path, expect_handler=answer_expectation)
        add(declared.respond)
        return handler

    return declare


def _parse_headers(model: type[BaseModel], request: web.Request) -> BaseModel:
    names, without = _headers_of(model)
    headers = request.headers
    given = {name: headers[name] for name in names if name in headers}
    return _parse_strings(model, given, request) if given else without


@cache
def _headers_of(model: type[BaseModel]) -> tuple[Sequence[str], BaseModel]:
    """Return the headers that a model takes, and what it is where none of them is given."""
    return [field.alias or name for name, field in model.model_fields.items()], model()


def _context(settings: Settings) -> dict[str, int]:
    return {MAX_CHARS: settings.chat_max_message_chars}


def _parse_strings(
    model: type[BaseModel], values: Mapping[str, str], request: web.Request
) -> BaseModel:
    try:
        context = _context(settings_of(request.app))
        return model.model_validate_strings(dict(values), context=context)
    except ValidationError as error:
        raise RequestError(validation_error(error)) from None


def _query_of(request: web.Request) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            request.rel_url.raw_query_string,
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except UnicodeDecodeError:
        _refuse(400, "malformed_query", "The query string is not UTF-8.")
    except ValueError:
        _refuse(400, "malformed_query", "The query string has too many parameters.")
    query = dict(pairs)
    if len(query) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        _refuse(422, "invalid_field", f"{repeated}: is given more than once", param=repeated)
    return query


def _check_content_type(request: web.Request) -> None:
    if request.content_type != JSON or hdrs.CONTENT_TYPE not in request.headers:
        _refuse(415, "unsupported_media_type", f"The body must be {JSON}.")
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        _refuse(415, "unsupported_media_type", "JSON is encoded in UTF-8.")


async def _read(request: web.Request) -> bytes:
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() not in ENCODINGS:
        _refuse(415, "unsupported_media_type", "The body's encoding is not known here.")
    try:
        return await request.read()
    except (web.RequestPayloadError, ContentEncodingError, TransferEncodingError):
        # Nothing behind it on this connection can be read either; aiohttp would try.
        request.content.feed_eof()
        message = "The body cannot be read as its headers say."
        error = WireError(status=400, code="malformed_body", message=message, closes=True)
        raise RequestError(error) from None
    except ConnectionError:
        _refuse(400, "incomplete_body", "The connection ended before the body did.")


async def answer_expectation(request: web.Request) -> web.Response | None:
    """Tell a client that waits for leave to send its body to go on; refuse other expectations."""
    if request.headers[hdrs.EXPECT].lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # What was written is no part of the response's size.
        request.writer.output_size = 0
        return None
    chosen = new_request_id(request.headers.get(REQUEST_ID_HEADER, ""))
    response = http_error(417).response()
    response.headers[REQUEST_ID_HEADER] = chosen
    return response


async def _parse_body(model: type[BaseModel], request: web.Request) -> BaseModel:
    # Nearly every client sends just this, and looking closer takes time.
    if request.headers.get(hdrs.CONTENT_TYPE) != JSON:
        _check_content_type(request)
    body = await _read(request)
    context = _context(settings_of(request.app))
    try:
        return model.model_validate_json(body, strict=True, context=context)
    except ValidationError as error:
        # What does not parse is the only problem there is.
        if error.error_count() == 1 and error.errors()[0]["type"] == "json_invalid":
            _refuse_malformed(model, body, context)
        raise RequestError(validation_error(error)) from None


def _refuse_malformed(model: type[BaseModel], body: bytes, context: dict[str, int]) -> NoReturn:
    """Refuse JSON that does not parse; a lone surrogate is JSON still, and a field's fault."""
    try:
        value = json.loads(body, parse_int=float)
        model.model_validate(value, strict=True, context=context)
    except ValidationError as error:
        raise RequestError(validation_error(error)) from None
    except (ValueError, RecursionError):
        pass
    _refuse(400, "malformed_json", "The body is not valid JSON.")


def _refuse(status: int, code: str, message: str, *, param: str | None = None) -> NoReturn:
    error = WireError(status=status, code=code, message=message, param=param)
    raise RequestError(error) from None
