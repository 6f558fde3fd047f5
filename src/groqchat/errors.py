"""Every error that the service raises on purpose.

GroqChatError
├── ConfigurationError           the service cannot start with these settings
├── HostNotAllowed               the Host header contains a name that is not the service's
├── CrossSiteRequest             a page of an origin that is not allowed sent the request
├── InvalidField                 a field of the request has an invalid value
├── SessionNotFound
├── ModelNotFound                the path names a model that is not in the list of models
├── IdempotencyKeyReused         the key was used with a different request
├── TurnNotFound                 the turn does not exist, or its events have expired
├── TurnLost                     the worker of the turn died, or the turn was run again
├── DocsUnavailable              the page with the description of the API cannot be rendered
├── NotReady                     Redis is unavailable, or no API key is set
├── Overloaded                   too many turns or streams
├── ShuttingDown
├── StorageError
│   ├── HistoryUnavailable       Redis cannot be reached, or rejects commands for now
│   ├── HistoryFailed            Redis rejects a command, such as one for a key of another type
│   └── SessionCleared           the session was deleted during the turn
└── CompletionError
    ├── CompletionNotConfigured  no API key is set
    ├── CompletionRejected       Groq rejected the request
    ├── UnknownModel
    ├── PromptTooLarge           more tokens than the model or the quota allows
    ├── RateLimited
    ├── CompletionOverloaded     Groq is out of capacity
    ├── CompletionUnavailable    Groq failed or cannot be reached
    └── CompletionTimeout

`http/errors.py` maps the classes to HTTP statuses.
"""

from typing import ClassVar


class GroqChatError(Exception):
    """Base of every error.

    `code` is stable, for programs. `message` is safe to show to clients. `detail` is only for the
    log; it contains no prompt, API key or password. `param` names the invalid field.
    """

    code: ClassVar[str] = "internal_error"
    default_message: ClassVar[str] = "An internal error occurred."

    def __init__(
        self,
        detail: str = "",
        *,
        message: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = message or self.default_message
        self.detail = detail
        self.param = param
        self.retry_after_s = retry_after_s
        super().__init__(detail or self.message)


class ConfigurationError(GroqChatError):
    code = "configuration_error"


class HostNotAllowed(GroqChatError):
    code = "host_not_allowed"
    default_message = (
        "The service does not accept this host name. Add the name to ALLOWED_HOSTS to allow "
        "requests that use it."
    )


class CrossSiteRequest(GroqChatError):
    code = "cross_site_request"
    default_message = (
        "A page of another origin must not send this request. Add the origin of the page to "
        "CORS_ALLOWED_ORIGINS to allow it."
    )


class InvalidField(GroqChatError):
    code = "invalid_field"


class SessionNotFound(GroqChatError):
    code = "session_not_found"
    default_message = "The session does not exist."


class ModelNotFound(GroqChatError):
    code = "model_not_found"
    default_message = "The model does not exist or is not available."


class IdempotencyKeyReused(GroqChatError):
    code = "idempotency_key_reused"
    default_message = "This Idempotency-Key was already used with a different request."


class TurnNotFound(GroqChatError):
    code = "turn_not_found"
    default_message = "The turn does not exist, or its events have expired."


class TurnLost(GroqChatError):
    code = "turn_lost"
    default_message = "The worker that ran the turn ended before the answer was complete."


class DocsUnavailable(GroqChatError):
    code = "docs_unavailable"
    default_message = "The page cannot be shown at the moment. The description is at openapi.json."


class NotReady(GroqChatError):
    code = "not_ready"
    default_message = "The service is not ready."


class Overloaded(GroqChatError):
    code = "overloaded"
    default_message = "Too many messages are being answered at the moment."


class ShuttingDown(GroqChatError):
    code = "shutting_down"
    default_message = "The service is stopping."


class StorageError(GroqChatError):
    code = "history_error"


class HistoryUnavailable(StorageError):
    code = "history_unavailable"
    default_message = "The chat history is unavailable at the moment."


class HistoryFailed(StorageError):
    code = "history_failed"
    default_message = "The chat history could not be read or written."


class SessionCleared(StorageError):
    code = "session_cleared"
    default_message = "The session was deleted during the turn."


class CompletionError(GroqChatError):
    code = "completion_error"
    default_message = "The completion failed."


class CompletionNotConfigured(CompletionError):
    code = "completion_not_configured"
    default_message = (
        "The service has no API key for Groq. Set GROQ_API_KEY, or start the service with --local "
        "to use the mock Groq server."
    )


class CompletionRejected(CompletionError):
    code = "completion_rejected"
    default_message = "Groq rejected the request."


class UnknownModel(CompletionError):
    code = "unknown_model"
    default_message = "The model does not exist or is not available."


class PromptTooLarge(CompletionError):
    code = "prompt_too_large"
    default_message = "The prompt has more tokens than the model or the quota allows."


class RateLimited(CompletionError):
    code = "rate_limited"
    default_message = "Groq's rate limit is exhausted."


class CompletionOverloaded(CompletionError):
    code = "completion_overloaded"
    default_message = "Groq is out of capacity at the moment."


class CompletionUnavailable(CompletionError):
    code = "completion_unavailable"
    default_message = "The model failed to answer."


class CompletionTimeout(CompletionError):
    code = "completion_timeout"
    default_message = "The model took too long to answer."


# The errors of a prompt that Groq would reject again.
REJECTIONS = (CompletionRejected, PromptTooLarge)
