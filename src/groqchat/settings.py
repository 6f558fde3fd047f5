"""The settings of the service: names, defaults, bounds and descriptions."""

from functools import cached_property
from typing import Any, Literal, Self
from urllib.parse import parse_qs

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from groqchat.address_types import Host, HostNames, Names, Networks, Origins, PathPrefix
from groqchat.secret_types import ApiKey, Password
from groqchat.urls import (
    SERVICE_LINK_HINT,
    check_redis_url,
    normalize_groq_url,
    redis_address,
)

# If one of these is set, `--local` does not replace the Redis server.
REDIS_ADDRESS_FIELDS = {"redis_url", "redis_host", "redis_port", "redis_db", "redis_password"}
LOCAL_REDIS_URL = "embedded:.data/redis"
OFFLINE_SCHEME = "offline:"
# Streams arrive word by word at a pace that a person can see.
LOCAL_GROQ_URL = "offline:?chunk_ms=20"
# More processes than any machine of today has CPUs.
MAX_WORKERS = 256


class Settings(BaseSettings):
    """Immutable settings, read from the environment and `.env`."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    redis_host: Host = Field("localhost", description="Host name of the Redis server.")
    redis_port: int = Field(6379, ge=1, le=65535, description="Port of the Redis server.")
    redis_db: int = Field(0, ge=0, description="Number of the Redis database.")
    redis_password: Password = Field(
        None, description="Password of the Redis server. Empty: no password."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="URL of the Redis server. It replaces the four settings above. redis://, "
        "rediss:// (TLS), unix:///socket?db=0, embedded:DIR (a private server with its data in "
        "DIR) or memory: (nothing survives a restart).",
    )
    redis_timeout_s: float = Field(
        2.0,
        gt=0,
        le=60,
        description="Timeout of one operation on the history, and of all operations of a turn "
        "together, in seconds. Retries are included.",
    )
    redis_max_connections: int = Field(
        64,
        # The command batcher uses two. Session lists, health checks and the index pruner use the
        # others.
        ge=4,
        le=10_000,
        description="Maximum number of connections to Redis. Further operations wait for one.",
    )
    chat_history_ttl: int = Field(
        86400,
        ge=1,
        le=315_360_000,
        description="Lifetime of a session after its last message, in seconds. At most ten years.",
    )

    groq_api_key: ApiKey = Field(None, description="API key from console.groq.com.")
    groq_base_url: str = Field(
        "https://api.groq.com",
        description="Base URL of Groq's API. `offline:` starts the mock Groq server inside the "
        "service. `offline:?latency_ms=300` delays its answers.",
    )
    groq_default_model: str = Field(
        "openai/gpt-oss-20b",
        min_length=1,
        description="The model of a request that does not name a model.",
    )
    groq_allowed_models: Names = Field(
        (),
        description="Models that clients may use, separated by commas. Empty: all models of Groq.",
    )
    groq_timeout_s: float = Field(
        # Twice the time that the longest answer of any model takes at the speed that Groq states.
        300.0,
        gt=0,
        le=3600,
        description="Timeout of one whole completion in seconds, streamed or not, retries "
        "included.",
    )
    groq_first_byte_timeout_s: float = Field(
        # A stream begins within a second, unless Groq queues the request. An answer that is not
        # streamed begins when it is complete: 30,000 tokens at 500 tokens per second.
        60.0,
        gt=0,
        le=3600,
        description="Timeout of the wait for the first byte of a completion in seconds, retries "
        "included. Without streaming, Groq sends it when the answer is complete.",
    )
    groq_read_timeout_s: float = Field(
        # A model that calls tools of Groq can pause for half a minute.
        60.0,
        gt=0,
        le=3600,
        description="Timeout of each pause between two parts of a response of Groq in seconds.",
    )
    groq_connect_timeout_s: float = Field(
        5.0, gt=0, le=60, description="Timeout of a new connection to Groq in seconds."
    )
    groq_max_retries: int = Field(
        2, ge=0, le=10, description="Retries after a transient failure of Groq."
    )

    chat_max_message_chars: int = Field(
        100_000,
        ge=1,
        description="Maximum length of a message and of a system prompt, in characters.",
    )
    chat_context_messages: int = Field(
        50,
        ge=0,
        le=1000,
        description="Maximum number of earlier messages in the prompt. A request can override it.",
    )
    chat_context_tokens: int = Field(
        16_000,
        ge=0,
        # One eighth of the context window of the default model keeps answers fast and cheap.
        description="Maximum size of the earlier messages in the prompt, in estimated tokens.",
    )
    max_concurrent_turns: int = Field(
        8192,
        ge=1,
        description="Maximum number of turns at the same time. Further ones are rejected with 503.",
    )
    max_body_bytes: int = Field(
        4_194_304,
        ge=1024,
        # Fits a message and a system prompt of the maximum length with every character escaped.
        description="Maximum size of a request body, in bytes.",
    )

    host: Host = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(5000, ge=0, le=65535, description="Port to listen on. 0: any free port.")
    workers: int = Field(
        1,
        ge=0,
        le=MAX_WORKERS,
        description="Number of worker processes. 0: one for each available CPU.",
    )
    header_timeout_s: float = Field(
        # Browsers and proxies open connections in advance, and open a new one if it was closed.
        20.0,
        gt=0,
        le=600,
        description="Maximum time from a new connection to its first byte, and from there to the "
        "end of the headers, in seconds. Then the connection is closed.",
    )
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Maximum time for which a request body may be slower than 4096 bytes per "
        "second, in seconds.",
    )
    keepalive_timeout_s: float = Field(
        # Longer than the idle timeouts of common load balancers, which end at 600 seconds. A proxy
        # whose connections end first loses requests.
        630.0,
        gt=0,
        le=86_400,
        description="An idle connection is closed after this number of seconds.",
    )
    max_connections: int = Field(
        # Twice MAX_CONCURRENT_TURNS: each running turn, and as many idle clients.
        16_384,
        ge=8,
        le=1_000_000,
        description="Maximum number of open connections of clients. For further ones, idle "
        "connections are closed. The limit on open files can lower it.",
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        description="Maximum number of open connections of one IP address. Empty: 1024 for public "
        "addresses, no limit for others.",
    )
    max_request_buffer_bytes: int = Field(
        # 64 bodies of maximum size that arrive at the same time.
        268_435_456,
        ge=1_048_576,
        description="Maximum size of all requests that have not arrived completely, and of the "
        "large bodies of running requests, in bytes. Requests beyond it are rejected with 503.",
    )
    stream_coalesce_ms: float = Field(
        200.0,
        ge=0,
        le=1000,
        description="The longest delay, in milliseconds, for which a busy worker collects the "
        "pieces of a stream to send them together. 0 sends each piece at once.",
    )
    stream_write_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="A client that does not read its stream for this many seconds is disconnected.",
    )
    shutdown_grace_s: float = Field(
        20.0,
        ge=0,
        le=600,
        description="Maximum time for running turns to finish after SIGTERM, in seconds.",
    )
    allowed_hosts: HostNames = Field(
        (),
        # A page could otherwise resolve its own name to this service (DNS rebinding).
        description="Further host names of the service, separated by commas. IP addresses, "
        "localhost and HOST are always accepted. `*.example.org`: its subdomains. `*`: any host.",
    )
    root_path: PathPrefix = Field(
        "",
        description="Prefix of the public paths, which a reverse proxy may remove, for example "
        "/chat.",
    )
    trusted_proxies: Networks = Field(
        (),
        description="IP addresses and networks of reverse proxies, separated by commas. Only their "
        "X-Forwarded headers are used.",
    )
    cors_allowed_origins: Origins = Field(
        (),
        description="Origins whose pages may call the API, separated by commas. `*`: any origin.",
    )
    access_log: bool = Field(
        default=False, description="Log one line for each request. This reduces throughput."
    )
    access_log_sample_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Fraction of the requests that ACCESS_LOG logs, chosen at random. "
        "Responses with status 5xx are always logged.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of the log: `text`, or `json` for one object in each line."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Minimum level of log lines: DEBUG, INFO, WARNING or ERROR."
    )

    @field_validator("redis_url")
    @classmethod
    def _redis_url_is_known(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        check_redis_url(url.get_secret_value())
        return url

    @field_validator("groq_base_url")
    @classmethod
    def _groq_base_url_fits_the_sdk(cls, url: str) -> str:
        url = url.strip()
        if url.startswith(OFFLINE_SCHEME):
            if url[len(OFFLINE_SCHEME) :][:1] not in {"", "?"}:
                raise ValueError("options must follow a question mark: offline:?latency_ms=300")
            return url
        return normalize_groq_url(url)

    @field_validator("log_level", mode="before")
    @classmethod
    def _level_in_capitals(cls, level: object) -> object:
        if not isinstance(level, str):
            return level
        # The logging module accepts this shorter name too.
        return {"WARN": "WARNING"}.get(level.strip().upper(), level.strip().upper())

    @field_validator("log_format", mode="before")
    @classmethod
    def _format_in_lower_case(cls, style: object) -> object:
        return style.strip().lower() if isinstance(style, str) else style

    @model_validator(mode="before")
    @classmethod
    def _redis_url_replaces_a_service_link(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("redis_url") and "://" in str(values.get("redis_port")):
            return {name: value for name, value in values.items() if name != "redis_port"}
        return values

    @field_validator("redis_port", mode="before")
    @classmethod
    def _port_is_no_service_link(cls, port: object) -> object:
        if isinstance(port, str) and "://" in port:
            # Docker and Kubernetes set such a value for a service that is named `redis`.
            raise ValueError(SERVICE_LINK_HINT)
        return port

    @model_validator(mode="after")
    def _default_model_is_allowed(self) -> Self:
        allowed = self.groq_allowed_models
        if allowed and self.groq_default_model not in allowed:
            raise ValueError("GROQ_DEFAULT_MODEL is not one of GROQ_ALLOWED_MODELS")
        return self

    @property
    def is_offline(self) -> bool:
        """Whether completions come from the mock Groq server."""
        return self.groq_base_url.startswith(OFFLINE_SCHEME)

    @cached_property
    def offline_options(self) -> dict[str, str]:
        """The options after `offline:?`; the last value of a repeated option."""
        query = self.groq_base_url.removeprefix(OFFLINE_SCHEME).removeprefix("?")
        return {name: values[-1] for name, values in parse_qs(query).items()}

    @property
    def redis_address(self) -> str:
        """The address of Redis, without credentials."""
        if self.redis_url is None:
            return f"{self.redis_host}:{self.redis_port}"
        return redis_address(self.redis_url.get_secret_value())

    def with_local_defaults(self) -> Self:
        """Use the embedded server and the mock Groq server if Redis or Groq is not configured."""
        changes: dict[str, Any] = {}
        if not self.model_fields_set & REDIS_ADDRESS_FIELDS:
            changes["redis_url"] = SecretStr(LOCAL_REDIS_URL)
        if self.groq_api_key is None and "groq_base_url" not in self.model_fields_set:
            changes["groq_base_url"] = LOCAL_GROQ_URL
        return self.model_copy(update=changes)
