"""The phases of a connection, and what they imply."""

from enum import Enum


class Phase(Enum):
    """The state of a connection."""

    SILENT = "no byte has arrived"
    HEAD = "a request line and headers arrive"
    BODY = "a body arrives"
    RUNNING = "a complete request has no complete response"
    DISCARDING = "the rest of a body arrives after the response"
    IDLE = "waiting for the next request"
    CLOSING = "no further byte is read"


WITHOUT_REQUEST = {Phase.SILENT, Phase.IDLE}
# A request that has a response can get no error.
WITHOUT_ERROR = {*WITHOUT_REQUEST, Phase.DISCARDING}
# The order in which connections are closed for new ones.
CLOSED_FOR_OTHERS = {
    Phase.SILENT: 0,
    Phase.IDLE: 1,
    Phase.DISCARDING: 2,
    Phase.HEAD: 3,
    Phase.BODY: 4,
}
