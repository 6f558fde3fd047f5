"""The request of each client, and the answer of the mock Groq server.

The first argument is the URL of the service.
"""

import sys

from pydantic import BaseModel

MODEL = "openai/gpt-oss-20b"
QUESTION = "Who is Ada?"
ANSWER = f'This is the mock Groq server, not a model. You said: "{QUESTION}". Messages received: 1.'
SERVICE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:5000"
BASE_URL = f"{SERVICE_URL}/openai/v1"


class Person(BaseModel):
    """A structured answer."""

    name: str
    age: int
    tags: list[str]


PERSON = Person(name=QUESTION, age=1, tags=[QUESTION])
