"""The options of the mock Groq server: delays and failures."""

from collections.abc import Mapping
from typing import Literal, Self, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from groqchat.address_types import Host
from groqchat.errors import ConfigurationError
from groqchat.validation_messages import message_of

Failure: TypeAlias = Literal[
    "400", "401", "403", "404", "408", "409", "413", "422", "429", "498", "499",
    "500", "502", "503", "504", "drop", "hang", "garbage", "empty", "surrogate",
]  # fmt: skip

M = TypeVar("M", bound=BaseModel)

HEADER_PREFIX = "X-Offline-"
# The maximum of each delay.
MAX_WAIT_MS = 600_000
# Longer than the answers of any model.
MAX_CHUNKS = 1_000_000


class MockGroqAddress(BaseModel):
    """The address on which the mock Groq server listens if it runs alone."""

    # `Settings.port` has the same bounds.
    host: Host = Field("127.0.0.1", description="address to listen on")
    port: int = Field(5001, ge=0, le=65535, description="port to listen on; 0: any free port")


class MockGroqOptions(BaseModel):
    """The behaviour of the mock Groq server.

    A request overrides an option with a header, for example `X-Offline-Latency-Ms`.
    """

    model_config = ConfigDict(extra="forbid")

    latency_ms: float = Field(0, ge=0, le=MAX_WAIT_MS, description="delay before a response, in ms")
    chunk_ms: float = Field(
        0, ge=0, le=MAX_WAIT_MS, description="delay before each further chunk of a stream, in ms"
    )
    chunks: int | None = Field(
        None,
        ge=1,
        le=MAX_CHUNKS,
        description="length of the answer in words, which are the chunks of a stream",
    )
    fail: Failure | None = Field(
        None,
        description=f"status ({', '.join(filter(str.isdigit, get_args(Failure)))}), "
        "drop (break the connection), hang (do not respond), garbage (respond with HTML), "
        "empty (no choices) or surrogate (a lone surrogate in the answer)",
    )
    fail_times: int | None = Field(
        None, ge=0, description="number of requests that fail; default: all"
    )
    fail_after_chunks: int | None = Field(
        None, ge=0, description="chunks of a stream before the failure"
    )
    retry_after_s: float | None = Field(None, ge=0, description="Retry-After header of a failure")

    def for_request(self, headers: Mapping[str, str]) -> Self:
        """Return the options for one request; a failure reduces the remaining `fail_times`."""
        overrides = {
            _field_name(name): value
            for name, value in headers.items()
            if name.lower().startswith(HEADER_PREFIX.lower())
        }
        options = self.model_validate({**self.model_dump(), **overrides})
        if "fail" not in overrides and options.fail is not None and self.fail_times is not None:
            if self.fail_times == 0:
                return options.model_copy(update={"fail": None})
            self.fail_times -= 1
        return options


def parse_options(given: Mapping[str, str]) -> MockGroqOptions:
    """Return the options in a URL or on a command line; ConfigurationError names an invalid one."""
    return _parsed(MockGroqOptions, given)


def parse_address(given: Mapping[str, str]) -> MockGroqAddress:
    """Return the address on a command line; ConfigurationError names an invalid option."""
    return _parsed(MockGroqAddress, given)


def _parsed(model: type[M], given: Mapping[str, str]) -> M:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        option = str(first["loc"][0]).replace("_", "-")
        message = message_of(first, model.model_fields)
        raise ConfigurationError(f"--{option}: {message}") from None


def _field_name(header: str) -> str:
    return header[len(HEADER_PREFIX) :].lower().replace("-", "_")
