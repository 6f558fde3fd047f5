"""instructor: structured output by tools and by JSON schema."""

import instructor
from openai import OpenAI

from tests.clients.expected import BASE_URL, MODEL, PERSON, QUESTION, Person

openai = OpenAI(base_url=BASE_URL, api_key="any", max_retries=0)
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai, mode=mode)
    found = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        response_model=Person,
        max_retries=0,
    )
    # instructor returns an object of a class that it derives.
    assert found.model_dump() == PERSON.model_dump(), mode
