"""The API described as OpenAPI 3.1, from the declarations that validate and serve it."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias

from aiohttp import hdrs, web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from groqchat import __version__
from groqchat.errors import GroqChatError, InvalidField
from groqchat.http.endpoint import JSON, Endpoint
from groqchat.http.errors import STATUS
from groqchat.models import MAX_CHARS, MODELS
from groqchat.settings import Settings

Schema: TypeAlias = dict[str, Any]

REF = "#/components/schemas/{model}"
EVENT_STREAM = "text/event-stream"
# What can happen to any request with such a part, before its handler sees it.
OF_BODY = {
    400: ("malformed_json", "malformed_body", "incomplete_body"),
    413: ("body_too_large",),
    415: ("unsupported_media_type",),
}
OF_QUERY = {400: ("malformed_query",)}
OF_PATH = {404: ("not_found",)}
OF_ANY = {422: (InvalidField.code,), 500: (GroqChatError.code,)}


def describe(app: web.Application, settings: Settings, models: Sequence[str]) -> Schema:
    """Return the document of all endpoints that the application has.

    Where `models` are known, no other is valid.
    """
    endpoints = list(endpoints_of(app))
    schemas, definitions = _schemas(endpoints)
    paths: dict[str, Schema] = {}
    for endpoint in endpoints:
        operations = paths.setdefault(endpoint.path, {})
        operations[endpoint.method.lower()] = _operation(endpoint, schemas)
    document: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "groqchat",
            "version": __version__,
            "description": "Chat through Groq, every message kept in Redis.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": definitions},
    }
    limited: Schema = _with_limits(
        document, {MAX_CHARS: settings.chat_max_message_chars, MODELS: list(models) or None}
    )
    return limited


def endpoints_of(app: web.Application) -> Iterable[Endpoint]:
    """Yield what the application's routes were declared as, HEAD aside, which follows GET."""
    for route in app.router.routes():
        owner = getattr(route.handler, "__self__", None)
        if isinstance(owner, Endpoint) and route.method in {owner.method, hdrs.METH_ANY}:
            yield owner


def _schemas(endpoints: Sequence[Endpoint]) -> tuple[dict[type[BaseModel], Schema], Schema]:
    """Return a reference for each model of a body or an answer, and what they refer to."""
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {
        (endpoint.notes.error_model, "serialization"): None for endpoint in endpoints
    }
    for endpoint in endpoints:
        if endpoint.body_model is not None:
            wanted[endpoint.body_model, "validation"] = None
        if endpoint.answer_model is not None:
            wanted[endpoint.answer_model, "serialization"] = None
        for event in endpoint.notes.events:
            wanted[event, "serialization"] = None
    references, definitions = models_json_schema(list(wanted), ref_template=REF)
    by_model = {model: references[model, mode] for model, mode in wanted}
    return by_model, definitions["$defs"]


def _operation(endpoint: Endpoint, schemas: dict[type[BaseModel], Schema]) -> Schema:
    operation: Schema = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "responses": _responses(endpoint, schemas),
    }
    parameters = [
        *_parameters("path", endpoint.path_model),
        *_parameters("query", endpoint.query_model),
        *_parameters("header", endpoint.headers_model),
    ]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body_model is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": schemas[endpoint.body_model]}},
        }
    return operation


def _parameters(place: str, model: type[BaseModel] | None) -> Iterable[Schema]:
    if model is None:
        return
    schema = model.model_json_schema(by_alias=True)
    for name, field in schema["properties"].items():
        yield {
            "name": name,
            "in": place,
            "required": name in schema.get("required", ()),
            "schema": _sendable(field),
        }


def _sendable(schema: Schema) -> Schema:
    """Return a field's schema without null, which a query or a header cannot hold."""
    some = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if len(some) != 1:
        return schema
    rest = {name: value for name, value in schema.items() if name not in {"anyOf", "default"}}
    return {**rest, **some[0]}


def _responses(endpoint: Endpoint, schemas: dict[type[BaseModel], Schema]) -> Schema:
    content: Schema = {}
    if endpoint.answer_model is not None:
        content[JSON] = {"schema": schemas[endpoint.answer_model]}
    if endpoint.notes.media_type is not None:
        content[endpoint.notes.media_type] = {"schema": {"type": "string"}}
    if endpoint.streams:
        content[EVENT_STREAM] = {"schema": _event(endpoint, schemas)}
    responses: Schema = {"200": {"description": "OK", "content": content}}
    if endpoint.notes.no_content:
        responses["204"] = {"description": endpoint.notes.no_content}
    for status, codes in sorted(_failures(endpoint).items()):
        responses[str(status)] = {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(sorted(codes))}",
            "content": {JSON: {"schema": schemas[endpoint.notes.error_model]}},
        }
    if endpoint.notes.passes_errors_on:
        responses["default"] = {
            "description": "Any other error of Groq's",
            "content": {JSON: {"schema": schemas[endpoint.notes.error_model]}},
        }
    return responses


def _event(endpoint: Endpoint, schemas: dict[type[BaseModel], Schema]) -> Schema:
    """Return the schema of one event of a stream; what its data hold is JSON in a string."""
    data: Schema = {"type": "string", "contentMediaType": JSON}
    if endpoint.notes.events:
        data["contentSchema"] = {"anyOf": [schemas[model] for model in endpoint.notes.events]}
    fields = {"id": {"type": "string"}, "event": {"type": "string"}, "data": data}
    return {
        "type": "object",
        "description": endpoint.notes.stream,
        "required": ["data"],
        "properties": fields,
    }


def _failures(endpoint: Endpoint) -> dict[int, set[str]]:
    """Return the codes of an endpoint's errors by their status."""
    found: dict[int, set[str]] = {}
    parts = (
        (OF_ANY, True),
        (OF_PATH, endpoint.path_model is not None),
        (OF_QUERY, True),
        (OF_BODY, endpoint.body_model is not None),
    )
    for codes, is_there in parts:
        for status, some in codes.items() if is_there else ():
            found.setdefault(status, set()).update(some)
    for error in endpoint.notes.errors:
        for kind, status in STATUS.items():
            if issubclass(kind, error):
                found.setdefault(status, set()).add(kind.code)
    return found


def _with_limits(value: Any, limits: Mapping[str, object]) -> Any:
    """Return a schema in which the names of limits have become their values, or are gone."""
    if isinstance(value, dict):
        limited = {name: _with_limits(inner, limits) for name, inner in value.items()}
        return {
            name: inner
            for name, inner in limited.items()
            if inner is not None or value[name] is None
        }
    if isinstance(value, list):
        return [_with_limits(inner, limits) for inner in value]
    return limits.get(value, value) if isinstance(value, str) else value
