"""The parameters of a request: its path, query and headers, validated by a model."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NoReturn
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import BaseModel, ValidationError

from groqchat.http.errors import RequestError, about_field, reject, validation_error

# More parameters than any route has.
MAX_QUERY_FIELDS = 100


def parse_headers(
    model: type[BaseModel], request: web.Request, limits: Mapping[str, int]
) -> BaseModel:
    """Return the headers that a model declares; none of them may be repeated."""
    names, default = _header_names(model)
    headers = request.headers
    given = {name: headers[name] for name in names if name in headers}
    if not given:
        return default
    for name in given:
        if len(headers.getall(name)) > 1:
            _reject_repeated(name)
    return parse_strings(model, given, limits)


@cache
def _header_names(model: type[BaseModel]) -> tuple[Sequence[str], BaseModel]:
    """Return the headers of a model, and its value if the request has none of them."""
    return [field.alias or name for name, field in model.model_fields.items()], model()


def parse_strings(
    model: type[BaseModel], values: Mapping[str, str], limits: Mapping[str, int]
) -> BaseModel:
    """Validate parameters, whose values are strings."""
    try:
        return model.model_validate_strings(dict(values), context=limits)
    except ValidationError as error:
        raise RequestError(validation_error(error, model)) from None


def parse_query(request: web.Request) -> dict[str, str]:
    """Return the query parameters, none of which may be repeated."""
    try:
        pairs = parse_qsl(
            request.rel_url.raw_query_string,
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except UnicodeDecodeError:
        reject(400, "malformed_query", "The query string is not UTF-8.")
    except ValueError:
        reject(400, "malformed_query", "The query string has too many parameters.")
    query = dict(pairs)
    if len(query) < len(pairs):
        names = [name for name, _ in pairs]
        _reject_repeated(next(name for name in names if names.count(name) > 1))
    return query


def _reject_repeated(name: str) -> NoReturn:
    reject(422, "invalid_field", about_field(name, "must not be repeated"), param=name)
