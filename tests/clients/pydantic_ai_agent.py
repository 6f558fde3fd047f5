"""pydantic-ai: text, structured output, and an agent with a tool."""

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.expected import ANSWER, BASE_URL, MODEL, PERSON, QUESTION, Person

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key="any"))
assert Agent(model).run_sync(QUESTION).output == ANSWER

agent = Agent(model, output_type=Person)
assert agent.run_sync(QUESTION).output == PERSON

topics: list[str] = []


@agent.tool_plain
def look_up(topic: str) -> str:
    """Look up a topic."""
    topics.append(topic)
    return f"found {topic}"


# The agent calls its tool once, then the tool of its output.
assert agent.run_sync(QUESTION).output == PERSON
assert topics == [QUESTION]
