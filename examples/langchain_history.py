"""Use LangChain with a conversation that the service stores.

Run `make run` first. LangChain needs no history class: the header names the session, and the
service adds its earlier messages.
"""

import os
import uuid

from langchain_openai import ChatOpenAI
from pydantic import SecretStr

model = ChatOpenAI(
    model="openai/gpt-oss-20b",
    base_url=os.environ.get("GROQCHAT_URL", "http://localhost:5000") + "/openai/v1",
    api_key=SecretStr("any"),
    default_headers={"X-Session-Id": f"example-{uuid.uuid4()}"},
)

print(model.invoke("What is Python?").content)
for chunk in model.stream("And asyncio?"):
    print(chunk.content, end="", flush=True)
print()
