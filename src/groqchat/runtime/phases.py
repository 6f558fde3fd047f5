"""The phases of a connection, and what they imply."""

from typing import Literal, TypeAlias

# Strings and no Enum: each turn compares them thirty times, and Python 3.11 needs 0.1 us to look up
# a member of an Enum.
Phase: TypeAlias = Literal[
    "silent",  # no byte has arrived
    "head",  # a request line and headers arrive
    "body",  # a body arrives
    "running",  # a complete request has no complete response
    "discarding",  # the rest of a body arrives after the response
    "idle",  # waiting for the next request
    "closing",  # no further byte is read
]

WITHOUT_REQUEST = {"silent", "idle"}
# A request that has a response can get no error.
WITHOUT_ERROR = {*WITHOUT_REQUEST, "discarding"}
# The order in which connections are closed for new ones.
CLOSED_FOR_OTHERS = {
    "silent": 0,
    "idle": 1,
    "discarding": 2,
    "head": 3,
    "body": 4,
}
