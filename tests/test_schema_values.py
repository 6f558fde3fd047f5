"""The mock Groq server's values for JSON schemas, checked with the package jsonschema."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from groqchat.offline.schema_values import SchemaError, SchemaValues

TEXT = "What is Python?"
NODE: dict[str, Any] = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                "parent": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["name", "children", "parent"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "any": {},
    "recursive": NODE,
    "nested": {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 5},
            "tags": {
                "type": "array",
                "items": {"type": "string"},
                "minItems": 3,
                "uniqueItems": True,
            },
            "score": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.3},
            "rating": {"type": "integer", "minimum": 10, "maximum": 99, "multipleOf": 7},
            "kind": {"enum": ["small", "large"]},
            "version": {"const": 3},
            "note": {"type": ["null", "string"], "minLength": 40},
        },
        "required": ["title", "tags", "score", "rating", "kind", "version"],
        "additionalProperties": False,
    },
    "combined": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
    "alternatives": {
        "type": "array",
        "items": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        "minItems": 2,
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "integer"}],
        "items": False,
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
    "empty list": {"type": "array", "maxItems": 0},
    "pattern and length": {"type": "string", "pattern": "^[a-z]+$", "minLength": 4, "maxLength": 9},
    "format and pattern": {"type": "string", "format": "email", "pattern": "^x+@y\\.org$"},
    "unique numbers": {
        "type": "array",
        "items": {"type": "integer", "minimum": 1, "maximum": 4},
        "minItems": 3,
        "uniqueItems": True,
    },
    "intersection": {
        "allOf": [{"type": "integer", "minimum": 3}, {"minimum": 1, "maximum": 9}, {"maximum": 5}]
    },
    "common choice": {"allOf": [{"enum": [1, 2, 3]}, {"enum": [3, 4]}]},
    "negative": {"type": "integer", "maximum": -5},
    "open interval": {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
    **{
        f"format {name}": {"type": "string", "format": name}
        for name in ("date", "date-time", "email", "ipv4", "ipv6", "uri", "uuid")
    },
    **{
        f"pattern {pattern}": {"type": "string", "pattern": pattern}
        for pattern in (r"^[A-Z]{3}-\d{4}$", "^(red|green)$", r"^\+?[0-9]{7,15}$", "^a+b*$")
    },
}


def assert_valid(schema: dict[str, Any], value: object) -> None:
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_value_satisfies_its_schema(name: str) -> None:
    schema = SCHEMAS[name]
    value = SchemaValues(schema, TEXT).value()
    assert_valid(schema, value)
    assert SchemaValues(schema, TEXT).value() == value


def test_a_value_contains_the_text_and_every_property() -> None:
    value = SchemaValues(SCHEMAS["nested"], TEXT).value()
    assert value == {
        "title": "What ",
        "tags": [TEXT, f"{TEXT} 2", f"{TEXT} 3"],
        "score": 0.15,
        "rating": 14,
        "kind": "small",
        "version": 3,
        "note": TEXT.ljust(40, "x"),
    }


LEAVES = st.one_of(
    st.builds(lambda least: {"type": "string", "minLength": least}, st.integers(0, 30)),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-50, 50),
        st.integers(0, 20),
    ),
    st.builds(lambda bound: {"type": "number", "exclusiveMaximum": bound}, st.integers(-9, 9)),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda values: {"enum": values}, st.lists(st.integers(), min_size=1)),
)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


TREES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(st.text("abc", min_size=1), inner, max_size=4)),
        st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least},
            inner,
            st.integers(0, 3),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=12,
)


@given(schema=TREES)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_schemas_are_satisfied(schema: dict[str, Any]) -> None:
    assert_valid(schema, SchemaValues(schema, TEXT).value())


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/Missing"},
        {"type": "unknown"},
        {"enum": []},
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "^a{1000000000}$"},
        {"type": "string", "pattern": "^a{2}$", "minLength": 5},
    ],
)
def test_an_unusable_schema_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        SchemaValues(schema, TEXT).value()
