"""JSON parser that accepts lone surrogates, which some programs write."""

import json
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """Parse JSON; a lone surrogate becomes `?`. Raises ValueError if the data is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False)
        return orjson.loads(text.encode(errors="replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
