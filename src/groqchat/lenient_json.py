"""JSON as others write it: half a character is no reason to refuse the rest."""

import json
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """Parse JSON, in which half of a surrogate pair becomes a `?`; ValueError for what is none."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False)
        return orjson.loads(text.encode(errors="replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
