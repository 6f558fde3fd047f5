"""The OpenAPI 3.1 document, generated from the endpoint declarations that validate requests."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias

from aiohttp import hdrs, web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from groqchat import __version__, sse
from groqchat.errors import CrossSiteRequest, GroqChatError, HostNotAllowed, InvalidField
from groqchat.fields import MAX_CHARS_PLACEHOLDER, MODELS_PLACEHOLDER, OPTIONAL_MODELS_PLACEHOLDER
from groqchat.http.endpoint import JSON, Endpoint
from groqchat.http.errors import STATUS
from groqchat.http.hosts import HEALTH_PATHS
from groqchat.http.origins import SAFE_METHODS
from groqchat.settings import Settings

Schema: TypeAlias = dict[str, Any]

REF = "#/components/schemas/{model}"
# Error codes by status that a request can cause before it reaches its handler: with a body, with
# a query, with path parameters, and in every case.
BODY_ERRORS = {
    400: ("malformed_json", "malformed_body", "incomplete_body"),
    413: ("body_too_large",),
    415: ("unsupported_media_type",),
    501: ("not_implemented",),
}
QUERY_ERRORS = {400: ("malformed_query",), 414: ("uri_too_long",)}
PATH_ERRORS = {404: ("not_found",)}
# Before a request with an unsafe method.
SITE_ERRORS = {403: (CrossSiteRequest.code,)}
# Before a request with any path except those of the health checks.
HOST_ERRORS = {421: (HostNotAllowed.code,)}
COMMON_ERRORS = {
    417: ("expectation_failed",),
    422: (InvalidField.code,),
    500: (GroqChatError.code,),
}


def describe(
    app: web.Application, settings: Settings, models: Sequence[str], *, server: str
) -> Schema:
    """Return the OpenAPI document of an application, with the address of its server at the end.

    `models` are the valid model names; if it is empty, every name is valid. The address is relative
    to that of the document.
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
            "description": "A chat service over Groq that stores every message in Redis.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": definitions},
        "servers": [{"url": server}],
    }
    values = {
        MAX_CHARS_PLACEHOLDER: settings.chat_max_message_chars,
        MODELS_PLACEHOLDER: list(models) or None,
        OPTIONAL_MODELS_PLACEHOLDER: [*models, ""] if models else None,
    }
    complete: Schema = _fill_placeholders(document, values)
    return complete


def endpoints_of(app: web.Application) -> Iterable[Endpoint]:
    """Yield the endpoints of an application, without the HEAD routes that aiohttp adds."""
    for route in app.router.routes():
        owner = getattr(route.handler, "__self__", None)
        if isinstance(owner, Endpoint) and route.method in {owner.method, hdrs.METH_ANY}:
            yield owner


def _schemas(endpoints: Sequence[Endpoint]) -> tuple[dict[type[BaseModel], Schema], Schema]:
    """Return a reference to each model of a request or response body, and the definitions."""
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {
        (endpoint.docs.error_model, "serialization"): None for endpoint in endpoints
    }
    for endpoint in endpoints:
        if endpoint.body_model is not None:
            wanted[endpoint.body_model, "validation"] = None
        if endpoint.response_model is not None:
            wanted[endpoint.response_model, "serialization"] = None
        for event in endpoint.docs.events:
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


def _parameters(location: str, model: type[BaseModel] | None) -> Iterable[Schema]:
    if model is None:
        return
    schema = model.model_json_schema(by_alias=True)
    for name, field in schema["properties"].items():
        description = {"description": field.pop("description")} if "description" in field else {}
        yield {
            "name": name,
            "in": location,
            "required": name in schema.get("required", ()),
            **description,
            "schema": _without_null(field),
        }


def _without_null(schema: Schema) -> Schema:
    """Return a field's schema without null, which a query or a header cannot contain."""
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) != 1:
        return schema
    rest = {name: value for name, value in schema.items() if name not in {"anyOf", "default"}}
    return {**rest, **options[0]}


def _responses(endpoint: Endpoint, schemas: dict[type[BaseModel], Schema]) -> Schema:
    content: Schema = {}
    if endpoint.response_model is not None:
        content[JSON] = {"schema": schemas[endpoint.response_model]}
    if endpoint.docs.media_type is not None:
        kind = "object" if endpoint.docs.media_type == JSON else "string"
        content[endpoint.docs.media_type] = {"schema": {"type": kind}}
    if endpoint.streams:
        content[sse.CONTENT_TYPE] = {"schema": _event(endpoint, schemas)}
    responses: Schema = {"200": {"description": "OK", "content": content}}
    if endpoint.docs.no_content:
        responses["204"] = {"description": endpoint.docs.no_content}
    for status, codes in sorted(_error_codes(endpoint).items()):
        responses[str(status)] = {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(sorted(codes))}",
            "content": {JSON: {"schema": schemas[endpoint.docs.error_model]}},
        }
    if endpoint.docs.forwards_upstream_errors:
        responses["default"] = {
            "description": "Any other error that Groq returns",
            "content": {JSON: {"schema": schemas[endpoint.docs.error_model]}},
        }
    return responses


def _event(endpoint: Endpoint, schemas: dict[type[BaseModel], Schema]) -> Schema:
    """Return the schema of one event of a stream; its `data` is a string that contains JSON."""
    data: Schema = {"type": "string", "contentMediaType": JSON}
    if endpoint.docs.events:
        data["contentSchema"] = {"anyOf": [schemas[model] for model in endpoint.docs.events]}
    fields = {"id": {"type": "string"}, "event": {"type": "string"}, "data": data}
    return {
        "type": "object",
        "description": endpoint.docs.stream,
        "required": ["data"],
        "properties": fields,
    }


def _error_codes(endpoint: Endpoint) -> dict[int, set[str]]:
    """Return the error codes of an endpoint by their status."""
    found: dict[int, set[str]] = {}
    parts = (
        (COMMON_ERRORS, True),
        (PATH_ERRORS, endpoint.path_model is not None),
        (QUERY_ERRORS, True),
        (HOST_ERRORS, endpoint.path not in HEALTH_PATHS),
        (SITE_ERRORS, endpoint.method not in SAFE_METHODS),
        (BODY_ERRORS, endpoint.body_model is not None),
    )
    for errors, is_possible in parts:
        for status, codes in errors.items() if is_possible else ():
            found.setdefault(status, set()).update(codes)
    for declared in endpoint.docs.errors:
        for kind, status in STATUS.items():
            if issubclass(kind, declared):
                found.setdefault(status, set()).add(kind.code)
    return found


def _fill_placeholders(value: Any, values: Mapping[str, object]) -> Any:
    """Replace each placeholder in a schema by its value; remove a field whose value is None."""
    if isinstance(value, dict):
        filled = {name: _fill_placeholders(inner, values) for name, inner in value.items()}
        return {
            name: inner
            for name, inner in filled.items()
            if inner is not None or value[name] is None
        }
    if isinstance(value, list):
        return [_fill_placeholders(inner, values) for inner in value]
    return values.get(value, value) if isinstance(value, str) else value
