"""A route declared once: its path, query, body and answer are the handler's own annotations."""

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeVar, get_type_hints
from urllib.parse import parse_qsl

from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError

from groqchat.http.errors import RequestError, WireError, validation_error
from groqchat.http.state import settings_of
from groqchat.models import MAX_CHARS
from groqchat.settings import Settings

Handler = Callable[..., Awaitable[BaseModel]]
AnyHandler = TypeVar("AnyHandler", bound=Handler)

JSON = "application/json"
# More parameters than any route has; what is behind them is not worth reading.
MAX_QUERY_FIELDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What a route takes and gives."""

    method: str
    path: str
    path_model: type[BaseModel] | None
    query_model: type[BaseModel] | None
    body_model: type[BaseModel] | None
    answer_model: type[BaseModel]
    handler: Handler

    async def respond(self, request: web.Request) -> web.Response:
        """Validate the request, call the handler, send its answer."""
        arguments: dict[str, BaseModel] = {}
        if self.path_model is not None:
            arguments["path"] = _parse_strings(self.path_model, request.match_info, request)
        if self.query_model is not None:
            arguments["query"] = _parse_strings(self.query_model, _query_of(request), request)
        if self.body_model is not None:
            arguments["body"] = await _parse_body(self.body_model, request)
        answer = await self.handler(request, **arguments)
        return web.Response(body=answer.model_dump_json().encode(), content_type=JSON)


def endpoint(
    routes: web.RouteTableDef, method: str, path: str
) -> Callable[[AnyHandler], AnyHandler]:
    """Add a handler to `routes`; its parameters `path`, `query` and `body` are validated."""

    def declare(handler: AnyHandler) -> AnyHandler:
        hints = get_type_hints(handler)
        unknown = set(inspect.signature(handler).parameters) - {"request", "path", "query", "body"}
        if unknown:
            raise TypeError(f"{handler.__name__}: an endpoint has no parameter {unknown}")
        declared = Endpoint(
            method=method,
            path=path,
            path_model=hints.get("path"),
            query_model=hints.get("query"),
            body_model=hints.get("body"),
            answer_model=hints["return"],
            handler=handler,
        )
        # aiohttp's own GET answers HEAD too, as balancers and monitors like to ask.
        add = routes.get(path) if method == hdrs.METH_GET else routes.route(method, path)
        add(declared.respond)
        return handler

    return declare


def _context(settings: Settings) -> dict[str, int]:
    return {MAX_CHARS: settings.chat_max_message_chars}


def _parse_strings(
    model: type[BaseModel], values: Mapping[str, str], request: web.Request
) -> BaseModel:
    try:
        return model.model_validate_strings(dict(values), context=_context(settings_of(request)))
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


async def _parse_body(model: type[BaseModel], request: web.Request) -> BaseModel:
    if request.content_type != JSON or hdrs.CONTENT_TYPE not in request.headers:
        _refuse(415, "unsupported_media_type", f"The body must be {JSON}.")
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        _refuse(415, "unsupported_media_type", "JSON is encoded in UTF-8.")
    body = await request.read()
    context = _context(settings_of(request))
    try:
        return model.model_validate_json(body, strict=True, context=context)
    except ValidationError as error:
        if any(problem["type"] == "json_invalid" for problem in error.errors()):
            _refuse_malformed(model, body, context)
        raise RequestError(validation_error(error)) from None


def _refuse_malformed(model: type[BaseModel], body: bytes, context: dict[str, int]) -> NoReturn:
    """Refuse JSON that does not parse; a lone surrogate is JSON still, and a field's fault."""
    try:
        model.model_validate(json.loads(body), strict=True, context=context)
    except ValidationError as error:
        raise RequestError(validation_error(error)) from None
    except (ValueError, RecursionError):
        pass
    _refuse(400, "malformed_json", "The body is not valid JSON.")


def _refuse(status: int, code: str, message: str, *, param: str | None = None) -> NoReturn:
    error = WireError(status=status, code=code, message=message, param=param)
    raise RequestError(error) from None
