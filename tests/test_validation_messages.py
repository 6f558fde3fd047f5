"""The messages of invalid requests: plain words, suggestions, and never text of pydantic."""

from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import ClientSession
from pydantic import BaseModel, ValidationError
from yarl import URL

from groqchat import models
from groqchat.app import create_app
from groqchat.fields import MAX_CHARS_PLACEHOLDER, PATTERN_RULES, SESSION_ID_PATTERN
from groqchat.http.openapi import endpoints_of
from groqchat.settings import Settings
from groqchat.validation_messages import FALLBACK, MESSAGES, message_of
from tests.conftest import Serve
from tests.support.api import BASE, assert_error
from tests.support.groq import MockGroq

RAW = ("String should", "Input should", "pattern", "Extra inputs", "Field required", "Value error")
REQUEST_MODELS = sorted(
    {
        model
        for endpoint in endpoints_of(create_app(Settings()))
        for model in (
            endpoint.path_model,
            endpoint.query_model,
            endpoint.headers_model,
            endpoint.body_model,
        )
        if model is not None
    }
    | {models.NoQuery},
    key=lambda model: model.__name__,
)
# The error types of each type of pydantic's core schema that our request models contain, and of
# each of its constraints.
ERROR_TYPES = {
    "any": set(),
    "bool": {"bool_type", "bool_parsing"},
    "default": set(),
    "float": {"float_type", "float_parsing", "finite_number"},
    "function-after": {"value_error"},
    "function-before": {"value_error"},
    "int": {"int_type", "int_parsing", "int_parsing_size", "int_from_float"},
    "literal": {"literal_error"},
    "model": {"model_type"},
    "model-field": {"missing"},
    "model-fields": {"extra_forbidden", "model_type"},
    "nullable": set(),
    "str": {"string_type", "string_unicode"},
}
CONSTRAINTS = {
    "ge": "greater_than_equal",
    "gt": "greater_than",
    "le": "less_than_equal",
    "lt": "less_than",
    "max_length": "string_too_long",
    "min_length": "string_too_short",
    "multiple_of": "multiple_of",
    "pattern": "string_pattern_mismatch",
}
# These have a message of their own instead of a row in MESSAGES.
SPECIAL = {"extra_forbidden", "string_pattern_mismatch", "value_error"}
VALUES: list[Any] = [None, 5, -1, 1.5, 1e999, 10**30, 10**5000, True, "", " ", "no spaces", "-",
    "x" * 200_000, "nan", "\ud83d", [], {}, [1], {"a": 1}]  # fmt: skip


def parts_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a core schema and all schemas that it contains."""
    if isinstance(schema, dict):
        if "type" in schema:
            yield schema
        for name, inner in schema.items():
            if name not in {"config", "function", "metadata", "serialization"}:
                yield from parts_of(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from parts_of(inner)


@pytest.mark.parametrize("model", REQUEST_MODELS)
def test_every_error_that_a_model_can_raise_has_a_message(model: type[BaseModel]) -> None:
    for schema in parts_of(model.__pydantic_core_schema__):
        kinds = ERROR_TYPES[schema["type"]]
        kinds = kinds | {name for key, name in CONSTRAINTS.items() if key in schema}
        assert kinds - SPECIAL - set(MESSAGES) == set(), schema
        if "pattern" in schema:
            assert schema["pattern"] in PATTERN_RULES


@pytest.mark.parametrize("model", REQUEST_MODELS)
@pytest.mark.parametrize("strict", [True, False])
def test_no_message_contains_text_of_pydantic_or_a_value(
    model: type[BaseModel],
    strict: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    names = [field.alias or name for name, field in model.model_fields.items()]
    messages = set()
    for value in VALUES:
        given: Any
        for given in (dict.fromkeys(names, value), {"nonsense": value}, value):
            try:
                model.model_validate(given, strict=strict, context={MAX_CHARS_PLACEHOLDER: 9})
            except ValidationError as error:
                problems = error.errors(include_input=False)
                messages |= {message_of(problem, model.model_fields) for problem in problems}
    assert messages
    for message in messages:
        assert not [text for text in (*RAW, "nonsense", "no spaces") if text in message], message
        assert message != FALLBACK


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        ({}, "message: is required", "missing"),
        ({"message": 5}, "message: must be a string", "string_type"),
        ({"message": ""}, "message: must not be empty", "string_too_short"),
        ({"message": " "}, "message: must not be blank", "value_error"),
        (
            {"message": "a", "session_id": "has space"},
            f"session_id: {PATTERN_RULES[SESSION_ID_PATTERN]}",
            "string_pattern_mismatch",
        ),
        (
            {"message": "a", "model": "no spaces"},
            "model: must be the id of a model, for example openai/gpt-oss-20b",
            "string_pattern_mismatch",
        ),
        ({"message": "a", "temperature": 3}, "temperature: must be at most 2", "less_than_equal"),
        ({"message": "a", "temperature": "1"}, "temperature: must be a number", "float_type"),
        ({"message": "a", "context": 1.5}, "context: must be a whole number", "int_type"),
        ({"message": "a", "stream": "yes"}, "stream: must be true or false", "bool_type"),
        (
            {"message": "a", "on_disconnect": "stop"},
            "on_disconnect: must be 'continue' or 'cancel'",
            "literal_error",
        ),
        ([], "The body must be a JSON object.", "model_type"),
    ],
)
async def test_the_message_says_what_is_allowed(
    api: ClientSession, body: Any, message: str, kind: str
) -> None:
    param = message.partition(":")[0] if ": " in message else None
    response = await api.post(f"{BASE}/chat", json=body)
    error = await assert_error(response, 422, "invalid_field", param=param)
    assert error["message"] == message
    assert [detail["type"] for detail in error["details"]] == [kind]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sessionId", "session_id"),
        ("SessionID", "session_id"),
        ("session-id", "session_id"),
        ("systemPrompt", "system_prompt"),
        ("maxCompletionTokens", "max_completion_tokens"),
        ("max_tokens", "max_completion_tokens"),
        ("mesage", "message"),
        ("prompt", "message"),
        ("conversation_id", "session_id"),
        ("topP", "top_p"),
    ],
)
async def test_an_unknown_field_gets_the_suggestion_that_was_meant(
    api: ClientSession, name: str, meant: str
) -> None:
    response = await api.post(f"{BASE}/chat", json={"message": "a", name: "secret"})
    error = await assert_error(response, 422, "invalid_field", param=name)
    assert error["message"] == f"{name}: unknown field; did you mean `{meant}`?"
    assert error["details"][0]["type"] == "extra_forbidden"


async def test_an_unknown_field_that_resembles_none_gets_the_list_of_fields(
    api: ClientSession,
) -> None:
    response = await api.get(f"{BASE}/history/s?colour=red")
    error = await assert_error(response, 422, "invalid_field", param="colour")
    assert error["message"] == (
        "colour: unknown field; the fields are `limit`, `order`, `after`, `before`"
    )
    response = await api.get("/healthz?colour=red")
    error = await assert_error(response, 422, "invalid_field", param="colour")
    assert error["message"] == "colour: unknown field; no field is allowed here"


async def test_an_invalid_header_gets_a_message_in_plain_words(api: ClientSession) -> None:
    headers = {"Idempotency-Key": "k" * 256}
    response = await api.post(f"{BASE}/chat", json={"message": "a"}, headers=headers)
    error = await assert_error(response, 422, "invalid_field", param="Idempotency-Key")
    assert error["message"] == "Idempotency-Key: must have 1 to 255 printable ASCII characters"


@pytest.mark.parametrize("as_form", [True, False])
async def test_an_empty_model_means_the_default_model(
    serve: Serve,
    groq: MockGroq,
    as_form: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    api = await serve()
    if as_form:
        response = await api.post(f"{BASE}/simple-chat?message=a&model=")
    else:
        response = await api.post(f"{BASE}/chat", json={"message": "a", "model": ""})
    assert response.status == 200
    assert (await response.json())["model"] == Settings().groq_default_model


async def test_long_names_of_unknown_fields_are_not_compared(api: ClientSession) -> None:
    names = [f"{'x' * 10_000}{number}" for number in range(20)]
    response = await api.post(f"{BASE}/chat", json={"message": "a", **dict.fromkeys(names, 1)})
    error = await assert_error(response, 422, "invalid_field", param=names[0][:64])
    assert {detail["message"].partition(";")[2][:16] for detail in error["details"]} == {
        " the fields are "
    }


SESSIONS_FIELDS = "the fields are `limit`, `order`, `after`, `before`"


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("GET", "sessions?=&", None, f'"": unknown field; {SESSIONS_FIELDS}'),
        ("GET", "sessions?=1&=2", None, '"": must not be repeated'),
        ("GET", "sessions/s?=", None, '"": unknown field; no field is allowed here'),
        ("POST", "chat", {"message": "a", "": 1}, '"": unknown field; the fields are '),
    ],
)
async def test_a_field_with_an_empty_name_is_shown_in_quotes(
    api: ClientSession, method: str, path: str, body: Any, message: str
) -> None:
    url = URL(f"{BASE}/{path}", encoded=True)
    response = await api.request(method, url, json=body)
    error = await assert_error(response, 422, "invalid_field", param="")
    assert error["message"].startswith(message)
