"""Use the OpenAI SDK with a conversation that the service stores.

Run `make run` first. The client sends only the new message; the model also receives the earlier
messages of the session.
"""

import os
import uuid

from openai import OpenAI

MODEL = "openai/gpt-oss-20b"
session_id = f"example-{uuid.uuid4()}"
client = OpenAI(
    base_url=os.environ.get("GROQCHAT_URL", "http://localhost:5000") + "/openai/v1",
    api_key="any",
    default_headers={"X-Session-Id": session_id},
)

first = client.chat.completions.create(
    model=MODEL, messages=[{"role": "user", "content": "What is Python?"}]
)
print(first.choices[0].message.content)

stream = client.chat.completions.create(
    model=MODEL, messages=[{"role": "user", "content": "And asyncio?"}], stream=True
)
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
print()
