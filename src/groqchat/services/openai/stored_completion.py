"""Conversion of stored answers to completions, for further attempts at a turn."""

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import orjson

from groqchat import sse
from groqchat.services.openai.messages import to_openai
from groqchat.services.openai.relay import DONE
from groqchat.services.openai.responses import ProxyResponse
from groqchat.storage.messages import Message

# Whether the messages of a client with a session are stored. For a stream, the header is sent
# before the answer, so it covers only the messages of the request.
SAVED_HEADER = "X-History-Saved"
HEADERS = {SAVED_HEADER: "true"}


def stored_completion(answer: Message, *, is_streamed: bool) -> ProxyResponse:
    """Return a stored answer in OpenAI's format; fields such as `usage` are absent."""
    message = to_openai(answer)
    if is_streamed:
        return ProxyResponse(
            status=HTTPStatus.OK, headers=HEADERS, events=_events(answer, _as_delta(message))
        )
    choice = {"message": message, "finish_reason": answer.finish_reason}
    body = _encode(answer, "chat.completion", choice)
    return ProxyResponse(status=HTTPStatus.OK, headers=HEADERS, body=body)


async def _events(answer: Message, delta: dict[str, Any]) -> AsyncIterator[bytes]:
    choices: tuple[dict[str, Any], ...] = (
        {"delta": delta, "finish_reason": None},
        {"delta": {}, "finish_reason": answer.finish_reason},
    )
    for choice in choices:
        yield sse.encode_event(_encode(answer, "chat.completion.chunk", choice))
    yield sse.encode_event(DONE)


def _as_delta(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as the delta of a stream, in which tool calls have an index."""
    if "tool_calls" not in message:
        return message
    calls = [{"index": index, **call} for index, call in enumerate(message["tool_calls"])]
    return {**message, "tool_calls": calls}


def _encode(answer: Message, kind: str, choice: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {
            "id": f"chatcmpl-{answer.id}",
            "object": kind,
            "created": int(answer.score),
            "model": answer.model,
            "choices": [{"index": 0, **choice}],
        }
    )
