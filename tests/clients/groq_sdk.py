"""The Groq SDK: a completion, a stream and structured output."""

from groq import Groq
from groq.types.chat import ChatCompletionMessageParam

from tests.clients.expected import ANSWER, MODEL, PERSON, QUESTION, SERVICE_URL, Person

messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
# Groq's SDK appends /openai/v1 itself.
client = Groq(base_url=SERVICE_URL, api_key="any", max_retries=0)

plain = client.chat.completions.create(model=MODEL, messages=messages)
assert plain.choices[0].message.content == ANSWER

stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER

structured = client.chat.completions.create(
    model=MODEL,
    messages=messages,
    response_format={
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": Person.model_json_schema()},
    },
)
assert Person.model_validate_json(structured.choices[0].message.content or "") == PERSON
