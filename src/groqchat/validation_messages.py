"""What is wrong with an invalid field, in plain words and without its value."""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic_core import ErrorDetails

from groqchat.fields import PATTERN_RULES

# By the error type of pydantic; the placeholders are in the context of the error.
MESSAGES = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number with fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "literal_error": "must be {expected}",
    "model_type": "must be a JSON object",
}
FALLBACK = "has an invalid value"

# Names that other chat APIs use for a field, in addition to the similar names.
SYNONYMS = {
    "chat_id": "session_id",
    "content": "message",
    "conversation_id": "session_id",
    "history": "context",
    "instructions": "system_prompt",
    "max_tokens": "max_completion_tokens",
    "messages": "message",
    "page_size": "limit",
    "prompt": "message",
    "system": "system_prompt",
    "text": "message",
    "thread_id": "session_id",
}
# Lower values suggest fields that have little in common with the unknown one.
MIN_SIMILARITY = 0.7
# Longer names are not compared with the known ones: the time grows with the square of the length.
MAX_NAME_CHARS = 64


def message_of(problem: ErrorDetails, known: Collection[str] = ()) -> str:
    """Return what is wrong with a field; `known` are the fields that its model accepts."""
    kind = problem["type"]
    context = problem.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_field(str(problem["loc"][-1]), known)
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        return PATTERN_RULES.get(context["pattern"], FALLBACK)
    return MESSAGES.get(kind, FALLBACK).format_map(_readable(context))


def similar_name(
    name: str, known: Collection[str], *, min_similarity: float = MIN_SIMILARITY
) -> str | None:
    """Return the known name in lower case with underscores that was probably meant."""
    if len(name) > MAX_NAME_CHARS:
        return None
    normal = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]+", "_", name).lower()
    if SYNONYMS.get(normal) in known:
        return SYNONYMS[normal]
    return next(iter(difflib.get_close_matches(normal, known, 1, min_similarity)), None)


def _unknown_field(name: str, known: Collection[str]) -> str:
    meant = similar_name(name, known)
    if meant is not None:
        return f"unknown field; did you mean `{meant}`?"
    if known:
        return f"unknown field; the fields are {', '.join(f'`{field}`' for field in known)}"
    return "unknown field; no field is allowed here"


def _readable(context: Mapping[str, Any]) -> dict[str, str]:
    """Return limits without the fraction `.0` of numbers that are integers."""
    return {
        name: f"{int(value)}" if isinstance(value, float) and value.is_integer() else f"{value}"
        for name, value in context.items()
    }
