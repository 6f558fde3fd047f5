"""The context: which earlier messages the model receives with the user message."""

import logging
from collections.abc import Iterable, Sequence

from groqchat.errors import StorageError
from groqchat.models import ChatRequest
from groqchat.services.groq.completions import Prompt
from groqchat.services.history_store import HistoryStore
from groqchat.settings import Settings
from groqchat.storage.errors import redis_errors
from groqchat.storage.exchanges import contexts
from groqchat.storage.messages import Message, PromptMessage

# Groq's tokenizers produce about one token for four bytes of English text.
BYTES_PER_TOKEN = 4
# Role and separators around each message.
TOKENS_PER_MESSAGE = 4
# Roles that need no further fields. A tool message is valid only after its tool call.
CONTEXT_ROLES = frozenset({"system", "user", "assistant"})

log = logging.getLogger(__name__)


def context_limit(request: ChatRequest, settings: Settings) -> int:
    """Return how many earlier messages to read for a request."""
    # A new session has no earlier messages.
    if request.session_id is None:
        return 0
    return settings.chat_context_messages if request.context is None else request.context


def build_prompt(
    request: ChatRequest,
    user_message: Message,
    earlier: Sequence[PromptMessage],
    *,
    settings: Settings,
) -> Prompt:
    """Return the prompt: the earlier messages within the token budget, then the user message.

    The budget does not include the user message and the system prompt.
    """
    options = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_completion_tokens": request.max_completion_tokens,
    }
    return Prompt(
        model=user_message.model or settings.groq_default_model,
        messages=[
            *fit_to_budget(earlier, settings.chat_context_tokens),
            {"role": "user", "content": user_message.content},
        ],
        system_prompt=request.system_prompt,
        options={name: value for name, value in options.items() if value is not None},
    )


async def read_fallbacks(
    history: HistoryStore,
    session_id: str,
    user_message: Message,
    earlier: Sequence[PromptMessage],
    *,
    max_wait_s: float,
) -> list[Sequence[PromptMessage]]:
    """Return the contexts for further prompts after Groq has rejected the one with `earlier`.

    They lack messages that have no answer: one of them can be the reason. If the history cannot be
    read, they lack all earlier messages, as after any failure of Redis.
    """
    if not earlier:
        return []
    try:
        async with redis_errors(max_wait_s):
            page = await history.get_history_page(
                session_id, limit=len(earlier), before=user_message.id
            )
    except StorageError as error:
        log.warning("answering without history: %s", error)
        return [[]]
    # The message that was the reason may have been removed since.
    found = list(contexts(page.messages)) or [page.messages]
    return [
        [{"role": each.role, "content": each.content} for each in messages] for messages in found
    ]


def without_repetitions(first: Prompt, others: Iterable[Prompt]) -> list[Prompt]:
    """Return the other prompts, each if it differs from the one before."""
    prompts = [first]
    prompts += (prompt for prompt in others if prompt != prompts[-1])
    return prompts[1:]


def fit_to_budget(earlier: Sequence[PromptMessage], tokens: int) -> Sequence[PromptMessage]:
    """Return the latest messages that fit into an estimated number of tokens, in order."""
    contents = [message["content"] for message in earlier]
    # The estimate below counts at most one token for each character: if this sum fits, it fits.
    upper_bound = sum(map(len, contents)) + TOKENS_PER_MESSAGE * len(contents)
    if (
        upper_bound <= tokens
        and all(contents)
        and CONTEXT_ROLES.issuperset([message["role"] for message in earlier])
    ):
        return earlier
    fitting: list[PromptMessage] = []
    for message in reversed(earlier):
        content = message["content"]
        if not content or message["role"] not in CONTEXT_ROLES:
            continue
        size = len(content) if content.isascii() else len(content.encode())
        tokens -= size // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE
        if tokens < 0:
            break
        fitting.append(message)
    return fitting[::-1]
