"""litellm: plain, streamed and structured completions."""

import asyncio
from typing import Any

import litellm

from tests.clients.expected import ANSWER, BASE_URL, MODEL, PERSON, QUESTION, Person

OPTIONS: dict[str, Any] = {
    "model": f"openai/{MODEL}",
    "messages": [{"role": "user", "content": QUESTION}],
    "api_base": BASE_URL,
    "api_key": "any",
    "max_retries": 0,
}


async def main() -> None:
    """Send the three kinds of requests."""
    plain = await litellm.acompletion(**OPTIONS)
    assert plain.choices[0].message.content == ANSWER
    stream = await litellm.acompletion(**OPTIONS, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER
    structured = await litellm.acompletion(**OPTIONS, response_format=Person)
    assert Person.model_validate_json(structured.choices[0].message.content) == PERSON


asyncio.run(main())
