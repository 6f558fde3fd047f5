"""The OpenAI SDK: structured output, the usage of a stream, and the models."""

from openai import NotFoundError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.expected import ANSWER, BASE_URL, MODEL, PERSON, QUESTION, Person

messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
client = OpenAI(base_url=BASE_URL, api_key="any", max_retries=0)

parsed = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Person)
assert parsed.choices[0].message.parsed == PERSON

stream = client.chat.completions.create(
    model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
)
*chunks, last = list(stream)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
assert last.choices == []
assert last.usage is not None
assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 17)

model = client.models.retrieve(MODEL)
assert (model.id, model.object, model.owned_by) == (MODEL, "model", "OpenAI")
assert MODEL in [listed.id for listed in client.models.list()]
code = None
try:
    client.models.retrieve("no/such-model")
except NotFoundError as error:
    code = error.code
assert code == "model_not_found"
