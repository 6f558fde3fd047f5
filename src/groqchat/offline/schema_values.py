"""Values that satisfy a JSON schema, for structured output and the arguments of tools.

Equal schemas and texts give equal values. Strings contain the text if their schema allows it.
"""

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import rstr

Schema: TypeAlias = Mapping[str, Any] | bool

# Beyond this depth, optional properties and items are left out, so recursive schemas end.
MAX_DEPTH = 4
# A schema that requires itself has no finite value.
MAX_RECURSION = 40
# Lists of many required items and long strings cost time and show nothing.
MAX_ITEMS = 1_000
MAX_LENGTH = 100_000
FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "duration": "PT1H",
    "email": "user@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "12:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
# Keywords whose values are combined if several schemas apply to one value.
COMBINED_OBJECTS = frozenset({"properties", "$defs", "definitions"})
LOWER_BOUNDS = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
UPPER_BOUNDS = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems"})
# A pattern that repeats a part more often than this would fill the memory.
MAX_REPETITIONS = 1_000
# Attempts to find a string that has a pattern and the required length.
PATTERN_ATTEMPTS = 100


class SchemaError(ValueError):
    """A schema is not valid, or no value of a reasonable size satisfies it."""


class SchemaValues:
    """Creates values for one schema and the definitions that it contains."""

    def __init__(self, schema: Schema, text: str) -> None:
        self._root = schema
        self._text = text

    def value(self) -> Any:
        """Return a value that satisfies the schema; raise SchemaError if there is none."""
        try:
            return self._value(self._root, 0)
        except SchemaError:
            raise
        except RecursionError:
            raise SchemaError("the schema is nested too deeply") from None
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            re.error,
        ) as error:
            raise SchemaError(f"the schema is not supported: {type(error).__name__}") from error

    def _value(self, schema: Schema, depth: int, number: int = 0) -> Any:
        """Return a value; `number` counts the items of a list, whose values may have to differ."""
        if depth > MAX_RECURSION:
            raise RecursionError
        fields = self._resolved(schema, depth)
        if "const" in fields:
            return fields["const"]
        if "enum" in fields:
            return fields["enum"][number % len(fields["enum"])]
        kind = _kind(fields)
        if kind == "object":
            return self._object(fields, depth)
        if kind == "array":
            return self._array(fields, depth)
        return self._scalar(kind, fields, number)

    def _scalar(self, kind: str, fields: Mapping[str, Any], number: int) -> Any:
        if kind == "string":
            return _string(fields, self._text, number)
        if kind in {"integer", "number"}:
            return _number(fields, number, is_integer=kind == "integer")
        return {"boolean": number % 2 == 0, "null": None}[kind]

    def _resolved(self, schema: Schema, depth: int) -> dict[str, Any]:
        """Return the keywords of a schema, with references, allOf and alternatives resolved."""
        fields: dict[str, Any] = dict(schema) if isinstance(schema, Mapping) else {}
        seen = 0
        while composed := {"$ref", "allOf", "anyOf", "oneOf"} & fields.keys():
            seen += 1
            if seen > MAX_RECURSION:
                raise RecursionError
            for keyword in sorted(composed):
                part = fields.pop(keyword)
                if keyword == "$ref":
                    _combine(fields, self._definition(part))
                elif keyword == "allOf":
                    for each in part:
                        _combine(fields, each)
                else:
                    _combine(fields, self._alternative(part, depth))
        return fields

    def _definition(self, reference: str) -> Mapping[str, Any]:
        found: Any = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            if part:
                found = found[part.replace("~1", "/").replace("~0", "~")]
        return dict(found)

    def _alternative(self, options: Sequence[Schema], depth: int) -> Mapping[str, Any]:
        """Return the first alternative that is not null; at MAX_DEPTH, the simplest one."""
        maps = [option for option in options if isinstance(option, Mapping)]
        if depth >= MAX_DEPTH:
            return min(maps, key=lambda option: ("$ref" in option, len(json.dumps(option))))
        return next((option for option in maps if option.get("type") != "null"), maps[0])

    def _object(self, fields: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = fields.get("properties", {})
        required = list(fields.get("required", ()))
        names = required if depth >= MAX_DEPTH else [*properties, *required]
        value = {
            name: self._value(properties.get(name, True), depth + 1)
            for name in dict.fromkeys(names)
        }
        extra = fields.get("additionalProperties", True)
        wanted = min(fields.get("minProperties", 0), MAX_ITEMS)
        for number in range(wanted - len(value)):
            value[f"key{number + 1}"] = self._value(extra, depth + 1, number)
        return value

    def _array(self, fields: Mapping[str, Any], depth: int) -> list[Any]:
        first = fields.get("prefixItems", ())
        fewest = max(fields.get("minItems", 0), len(first))
        most = fields.get("maxItems", MAX_ITEMS)
        count = fewest if fewest or depth >= MAX_DEPTH else 1
        items = [*first, *[fields.get("items", True)] * max(count - len(first), 0)]
        return [
            self._value(item, depth + 1, number)
            for number, item in enumerate(items[: min(most, MAX_ITEMS)])
        ]


def _combine(fields: dict[str, Any], other: Schema) -> None:
    """Add the keywords of another schema that applies to the same value."""
    for name, value in (other if isinstance(other, Mapping) else {}).items():
        if name == "required":
            fields[name] = [*fields.get(name, ()), *value]
        elif name in COMBINED_OBJECTS:
            fields[name] = {**fields.get(name, {}), **value}
        elif name == "enum" and name in fields:
            fields[name] = [each for each in fields[name] if each in value]
        elif name in LOWER_BOUNDS | UPPER_BOUNDS and name in fields:
            fields[name] = (max if name in LOWER_BOUNDS else min)(fields[name], value)
        elif name in {"anyOf", "oneOf", "allOf"} and name in fields:
            fields["allOf"] = [*fields.get("allOf", ()), {name: value}]
        else:
            fields[name] = value


def _kind(fields: Mapping[str, Any]) -> str:
    kinds = fields.get("type")
    if isinstance(kinds, list):
        return next((kind for kind in kinds if kind != "null"), "null")
    if kinds is not None:
        return str(kinds)
    if "properties" in fields or "required" in fields:
        return "object"
    if "items" in fields or "prefixItems" in fields:
        return "array"
    return "number" if {"minimum", "maximum", "multipleOf"} & fields.keys() else "string"


def _string(fields: Mapping[str, Any], text: str, number: int) -> str:
    shortest = min(fields.get("minLength", 0), MAX_LENGTH)
    longest = min(fields.get("maxLength", MAX_LENGTH), MAX_LENGTH)
    pattern = fields.get("pattern")
    formatted = FORMATS.get(fields.get("format", ""))
    if formatted is not None and (pattern is None or re.search(pattern, formatted)):
        return formatted
    if pattern is not None:
        return _matching(pattern, shortest, longest, number)
    suffix = f" {number + 1}" if number else ""
    value = text[: max(longest - len(suffix), 0)] + suffix
    return value.ljust(shortest, "x")[:longest]


def _matching(pattern: str, shortest: int, longest: int, number: int) -> str:
    """Return a string with a pattern and a length; equal arguments give equal strings."""
    counts = re.findall(r"\d+(?=,?\d*\})", pattern)
    if any(int(count) > MAX_REPETITIONS for count in counts):
        raise SchemaError("the pattern repeats a part too often")
    source = rstr.Rstr(random.Random(number))  # noqa: S311 - not used for security
    for _ in range(PATTERN_ATTEMPTS):
        value: str = source.xeger(pattern)
        if shortest <= len(value) <= longest:
            return value
    raise SchemaError("no string has both the pattern and the length")


def _number(fields: Mapping[str, Any], number: int, *, is_integer: bool) -> float:
    """Return the smallest suitable number from 1 upwards, or the largest one below."""
    step = fields.get("multipleOf", 1 if is_integer else 0.5)
    low, high = fields.get("minimum"), fields.get("maximum")
    above, below = fields.get("exclusiveMinimum"), fields.get("exclusiveMaximum")
    lowest = max((bound for bound in (low, above) if bound is not None), default=None)
    highest = min((bound for bound in (high, below) if bound is not None), default=None)
    start = 1 if lowest is None else max(lowest, 1)
    if highest is not None and start > highest:
        start = highest if lowest is None else lowest
    value = -(-start // step) * step
    if above is not None and value <= above:
        value += step
    if (highest is not None and value > highest) or (below is not None and value >= below):
        value = highest // step * step if highest is not None else value
        if below is not None and value >= below:
            value -= step
        if lowest is not None and (value < lowest or (above is not None and value <= above)):
            # The interval contains no multiple of the default step.
            value = (lowest + (highest or lowest)) / 2
    for other in (value + number * step, value - number * step):
        if _is_within(fields, other):
            value = other
            break
    return int(value) if is_integer or value == int(value) else value


def _is_within(fields: Mapping[str, Any], value: float) -> bool:
    low, high = fields.get("minimum", -math.inf), fields.get("maximum", math.inf)
    above, below = (
        fields.get("exclusiveMinimum", -math.inf),
        fields.get("exclusiveMaximum", math.inf),
    )
    return bool(low <= value <= high and above < value < below)
