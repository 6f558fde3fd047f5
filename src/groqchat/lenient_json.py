"""JSON parser that accepts what orjson rejects: lone surrogates and integers of any size."""

import json
import math
from typing import Any, NoReturn

import orjson


def loads(data: bytes) -> Any:
    """Parse JSON; a lone surrogate becomes `?`. Raises ValueError if the data is not JSON.

    Integers beyond 64 bits can become floats, as in orjson.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return loads_exact(data)


def loads_exact(data: bytes) -> Any:
    """Parse JSON as `loads` does, many times as slowly, with exact integers."""
    try:
        text = json.dumps(_parse(data), ensure_ascii=False)
        return _parse(text.encode(errors="replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _parse(data: bytes) -> Any:
    return json.loads(data, parse_float=_finite, parse_constant=_reject)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError("a number is infinity when parsed as double")
    return value


def _reject(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
