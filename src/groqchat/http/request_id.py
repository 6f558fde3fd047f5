"""The id of a request: the caller's own where it does no harm, else a new one."""

import random
import re

from groqchat.logs import request_id

REQUEST_ID_HEADER = "X-Request-ID"
# What can stand in a log line as it is.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def new_request_id(given: str = "") -> str:
    """Set and return the id of the request that begins."""
    chosen = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
    request_id.set(chosen)
    return chosen
