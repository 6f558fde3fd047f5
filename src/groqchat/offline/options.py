"""How the stand-in behaves: how slowly it answers, and whether it fails."""

import re
from collections.abc import Mapping
from typing import Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from groqchat.errors import ConfigurationError

Failure: TypeAlias = Literal[
    "400", "401", "403", "404", "408", "409", "413", "422", "429", "498", "499",
    "500", "502", "503", "504", "drop", "hang", "garbage", "empty", "surrogate",
]  # fmt: skip

HEADER_PREFIX = "X-Offline-"
# The stand-in holds no request for longer than this.
MAX_WAIT_MS = 600_000
# Longer than what any model answers.
MAX_CHUNKS = 1_000_000


class OfflineOptions(BaseModel):
    """Settings of the stand-in; a request's `X-Offline-Latency-Ms` and so on override them.

    `fail` is a status, or `drop` (the connection breaks), `hang` (no answer), `garbage` (not
    JSON), `empty` (no choices), `surrogate` (half a character). `fail_times` limits it to that
    many requests; in a stream, `fail_after_chunks` lets so many pieces through first.
    """

    model_config = ConfigDict(extra="forbid")

    latency_ms: float = Field(0, ge=0, le=MAX_WAIT_MS, description="wait before an answer")
    chunk_ms: float = Field(0, ge=0, le=MAX_WAIT_MS, description="wait before a streamed piece")
    chunks: int | None = Field(
        None, ge=1, le=MAX_CHUNKS, description="pieces of an answer, whatever it says"
    )
    fail: Failure | None = Field(None, description=", ".join(get_args(Failure)))
    fail_times: int | None = Field(None, ge=0, description="how many requests fail; default all")
    fail_after_chunks: int | None = Field(
        None, ge=0, description="streamed pieces before the failure"
    )
    retry_after_s: float | None = Field(None, ge=0, description="sent with a failure")

    def for_request(self, headers: Mapping[str, str]) -> Self:
        """Return the options of one request, and count the failure that it takes."""
        given = {
            _field_name(name): value
            for name, value in headers.items()
            if name.lower().startswith(HEADER_PREFIX.lower())
        }
        options = self.model_validate({**self.model_dump(), **given})
        if "fail" not in given and options.fail is not None and self.fail_times is not None:
            if self.fail_times == 0:
                return options.model_copy(update={"fail": None})
            self.fail_times -= 1
        return options


def parse_options(given: Mapping[str, str]) -> OfflineOptions:
    """Return the options of a URL or a command line; ConfigurationError names a wrong one."""
    try:
        return OfflineOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ConfigurationError(f"--{option}: {first['msg']}") from None


def _field_name(header: str) -> str:
    return re.sub("-", "_", header[len(HEADER_PREFIX) :].lower())
