"""Messages in OpenAI's format."""

from typing import Any


def user(text: str) -> dict[str, Any]:
    """Return a user message."""
    return {"role": "user", "content": text}


def answer(text: str | None, *calls: str, arguments: str = '{"a":1}') -> dict[str, Any]:
    """Return an assistant message; `calls` are the ids of its tool calls."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {
                "id": call,
                "type": "function",
                "function": {"name": "look_up", "arguments": arguments},
            }
            for call in calls
        ]
    return message


def result(call: str) -> dict[str, Any]:
    """Return the result of a tool call."""
    return {"role": "tool", "tool_call_id": call, "content": "found"}
