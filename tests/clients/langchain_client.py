"""LangChain: structured output, and a conversation that the service stores."""

import asyncio
import uuid

import requests
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.clients.expected import (
    ANSWER,
    BASE_URL,
    MODEL,
    PERSON,
    QUESTION,
    SERVICE_URL,
    Person,
)

KEY = SecretStr("any")
model = ChatOpenAI(model=MODEL, base_url=BASE_URL, api_key=KEY, max_retries=0)
assert model.with_structured_output(Person).invoke(QUESTION) == PERSON
by_tools = model.with_structured_output(Person, method="function_calling")
assert by_tools.invoke(QUESTION) == PERSON

session_id = f"langchain-{uuid.uuid4()}"
remembering = ChatOpenAI(
    model=MODEL,
    base_url=BASE_URL,
    api_key=KEY,
    max_retries=0,
    default_headers={"X-Session-Id": session_id},
)
assert remembering.invoke(QUESTION).content == ANSWER
streamed = "".join(str(chunk.content) for chunk in remembering.stream("And her work?"))
assert f'Before that you said: "{QUESTION}". Messages received: 3.' in streamed
history = requests.get(f"{SERVICE_URL}/api/groq-chat/history/{session_id}", timeout=30).json()
contents = [message["content"] for message in history["messages"]]
assert contents == [QUESTION, ANSWER, "And her work?", streamed]


async def continue_conversation() -> None:
    """Do the same with the asynchronous methods."""
    answer = await remembering.ainvoke("And again?")
    assert str(answer.content).endswith("Messages received: 5.")
    chunks = [str(chunk.content) async for chunk in remembering.astream("And now?")]
    assert "".join(chunks).endswith("Messages received: 7.")


asyncio.run(continue_conversation())
