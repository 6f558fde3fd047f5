"""Every error of ours.

GroqChatError
├── ConfigurationError           the service cannot start as it is set up
├── InvalidField                 a value in the request is not acceptable
├── SessionNotFound
├── IdempotencyKeyReused         for another message
├── TurnNotFound                 it never was, or is over for a while
├── TurnLost                     whoever ran the turn is gone
├── NotReady                     Redis is away, or there is no API key
├── Overloaded                   too many turns in flight
├── ShuttingDown
├── StorageError
│   ├── HistoryUnavailable       Redis cannot be reached or refuses work for now
│   ├── HistoryFailed            Redis answered, but not as our data model needs
│   └── SessionCleared           the session was deleted while its turn was under way
└── CompletionError
    ├── CompletionNotConfigured  no API key
    ├── CompletionRejected       Groq refused the request itself
    ├── UnknownModel
    ├── PromptTooLarge           more tokens than the model or the quota takes
    ├── RateLimited
    ├── CompletionOverloaded     Groq is out of capacity
    ├── CompletionUnavailable    Groq failed, or could not be reached
    └── CompletionTimeout

`message` is safe to show to a client. `detail` is for the log only; it names no
prompt, no key and no password.
"""

from typing import ClassVar


class GroqChatError(Exception):
    """Base of every error that the service raises on purpose."""

    code: ClassVar[str] = "internal_error"
    default_message: ClassVar[str] = "The service failed to answer."

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


class InvalidField(GroqChatError):
    code = "invalid_field"


class SessionNotFound(GroqChatError):
    code = "session_not_found"
    default_message = "There is no such session."


class IdempotencyKeyReused(GroqChatError):
    code = "idempotency_key_reused"
    default_message = "This Idempotency-Key stands for another message already."


class TurnNotFound(GroqChatError):
    code = "turn_not_found"
    default_message = "There is no such turn, or it has been over for a while."


class TurnLost(GroqChatError):
    code = "turn_lost"
    default_message = "The turn ended before its answer did."


class NotReady(GroqChatError):
    code = "not_ready"
    default_message = "Something that the service needs is missing."


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
    default_message = "The chat history cannot be reached at the moment."


class HistoryFailed(StorageError):
    code = "history_failed"
    default_message = "The chat history could not be read or written."


class SessionCleared(StorageError):
    code = "session_cleared"
    default_message = "The session was deleted in the meantime."


class CompletionError(GroqChatError):
    code = "completion_error"
    default_message = "The model could not answer."


class CompletionNotConfigured(CompletionError):
    code = "completion_not_configured"
    default_message = "The service has no access to a model: it is not configured."


class CompletionRejected(CompletionError):
    code = "completion_rejected"
    default_message = "The model refused the request."


class UnknownModel(CompletionError):
    code = "unknown_model"
    default_message = "The model does not exist, or is not available to this service."


class PromptTooLarge(CompletionError):
    code = "prompt_too_large"
    default_message = "The conversation is too large for the model."


class RateLimited(CompletionError):
    code = "rate_limited"
    default_message = "The model's rate limit is used up for now."


class CompletionOverloaded(CompletionError):
    code = "completion_overloaded"
    default_message = "The model is out of capacity at the moment."


class CompletionUnavailable(CompletionError):
    code = "completion_unavailable"
    default_message = "The model failed to answer."


class CompletionTimeout(CompletionError):
    code = "completion_timeout"
    default_message = "The model took too long to answer."
