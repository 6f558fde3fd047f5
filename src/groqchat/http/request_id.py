"""The id of the current request: the client's own if it is valid, otherwise a random one."""

import random
import re
from contextvars import ContextVar

REQUEST_ID_HEADER = "X-Request-ID"
# Characters that a log line can contain without escaping.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

NO_REQUEST_ID = "-"

request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST_ID)


def new_request_id(given: str = "") -> str:
    """Set and return the id of the request that begins."""
    chosen = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
    request_id.set(chosen)
    return chosen
