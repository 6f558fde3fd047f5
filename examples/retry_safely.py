"""Repeat a message after a failure without a second answer.

Run `make run` first. The Idempotency-Key makes the service answer the message once, even if the
response to the first request was lost.
"""

import os
import time
import uuid
from typing import Any

import requests

URL = os.environ.get("GROQCHAT_URL", "http://localhost:5000") + "/api/groq-chat"
ATTEMPTS = 5
RETRYABLE = {429, 500, 502, 503, 504}


def chat(message: str, session_id: str) -> dict[str, Any]:
    """Return the answer to a message; repeat the request after a temporary failure."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"message": message, "session_id": session_id}
    for attempt in range(ATTEMPTS):
        delay_s = float(2**attempt)
        try:
            response = requests.post(f"{URL}/chat", json=body, headers=headers, timeout=60)
            if response.ok:
                answer: dict[str, Any] = response.json()
                return answer
            if response.status_code not in RETRYABLE:
                raise SystemExit(response.json()["error"]["message"])
            delay_s = float(response.headers.get("Retry-After", delay_s))
        except requests.ConnectionError:
            pass
        time.sleep(delay_s)
    raise SystemExit("The service is not available.")


session_id = f"example-{uuid.uuid4()}"
print(chat("What is an idempotency key?", session_id)["message"])
history = requests.get(f"{URL}/history/{session_id}", timeout=60).json()
print(f"stored messages: {history['message_count']}")
