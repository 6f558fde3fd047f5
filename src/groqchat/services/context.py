"""What of a conversation the model is given."""

from collections.abc import Sequence

from groqchat.errors import UnknownModel
from groqchat.models import ChatRequest
from groqchat.services.completions import Prompt
from groqchat.settings import Settings
from groqchat.storage.messages import Message, Spoken

# Groq's tokenizers make a token of about four bytes of English, and of fewer elsewhere.
BYTES_PER_TOKEN = 4
# Role and separators around each message.
TOKENS_PER_MESSAGE = 4
# What a model takes as a conversation without further fields; a tool's answer needs its call.
CONTEXT_ROLES = frozenset({"system", "user", "assistant"})


def check_model(model: str | None, settings: Settings) -> None:
    """Raise UnknownModel for one that is not allowed here."""
    allowed = settings.groq_allowed_models
    if allowed and model is not None and model not in allowed:
        raise UnknownModel("not in GROQ_ALLOWED_MODELS", param="model")


def context_messages(request: ChatRequest, settings: Settings) -> int:
    """Return how many earlier messages to read for a request."""
    # A session that is only now given its name has none.
    if request.session_id is None:
        return 0
    return settings.chat_context_messages if request.context is None else request.context


def prompt_for(
    request: ChatRequest, question: Message, earlier: Sequence[Spoken], settings: Settings
) -> Prompt:
    """Return what the model is asked: earlier messages within the budget, then the question."""
    options = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_completion_tokens": request.max_completion_tokens,
    }
    return Prompt(
        model=question.model or settings.groq_default_model,
        messages=[
            *within_budget(earlier, settings.chat_context_tokens),
            {"role": "user", "content": question.content},
        ],
        system_prompt=request.system_prompt,
        options={name: value for name, value in options.items() if value is not None},
    )


def within_budget(earlier: Sequence[Spoken], tokens: int) -> Sequence[Spoken]:
    """Return the latest messages that fit an estimated number of tokens, in order."""
    contents = [message["content"] for message in earlier]
    # No character makes more than a token: what fits by that needs no closer look.
    most = sum(map(len, contents)) + TOKENS_PER_MESSAGE * len(contents)
    if (
        most <= tokens
        and all(contents)
        and CONTEXT_ROLES.issuperset([message["role"] for message in earlier])
    ):
        return earlier
    kept: list[Spoken] = []
    for message in reversed(earlier):
        content = message["content"]
        if not content or message["role"] not in CONTEXT_ROLES:
            continue
        size = len(content) if content.isascii() else len(content.encode())
        tokens -= size // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
        if tokens < 0:
            break
        kept.append(message)
    return kept[::-1]
