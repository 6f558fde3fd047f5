"""Completions of turns: whole or as a stream, until the model ends or the turn is stopped."""

from contextlib import aclosing

from groqchat.errors import CompletionError, CompletionUnavailable
from groqchat.services.groq.client import GroqClient
from groqchat.services.groq.completions import Completion, Prompt, StreamParser
from groqchat.services.groq.errors import strip_tracebacks
from groqchat.services.turns.turn import Turn
from groqchat.storage.messages import FAILED, STOPPED

# Longer than the longest answer of any model that Groq lists.
MAX_ANSWER_CHARS = 2_000_000


async def complete_turn(
    groq: GroqClient, turn: Turn, prompt: Prompt, *, timeout_s: float
) -> Completion:
    """Return the model's whole answer; an empty answer if the turn is stopped."""
    async with turn.stoppable(timeout_s):
        return await groq.complete(prompt)
    # Reached if the turn is stopped, because `stoppable` suppresses the cancellation.
    if error := turn.stop_error():
        raise error
    return Completion(
        text="", model=prompt.model, tokens=None, finish_reason=STOPPED, is_complete=False
    )


async def stream_turn(
    groq: GroqClient, turn: Turn, prompt: Prompt, *, timeout_s: float
) -> Completion:
    """Add the model's answer to the turn as it arrives, and return the completion.

    After the first text, an error is not raised but set as the turn's `error`.
    """
    parser = StreamParser(prompt.model)
    size = 0
    try:
        async with (
            turn.stoppable(timeout_s),
            aclosing(groq.stream(prompt, parser)) as stream,
        ):
            async for text in stream:
                size += len(text)
                if size > MAX_ANSWER_CHARS:
                    raise CompletionUnavailable(f"more than {MAX_ANSWER_CHARS} characters")
                turn.add_text(text)
    except CompletionError as error:
        # The frames of its traceback refer to the turn, which would be a cycle.
        turn.error = strip_tracebacks(error)
    else:
        turn.error = turn.stop_error()
    # The partial answer of an attempt that was superseded is not stored.
    if turn.error is not None and not (size and turn.stop_reason != "superseded"):
        failure, turn.error = turn.error, None
        try:
            raise failure
        finally:
            del failure
    return Completion(
        text=turn.events.text,
        model=parser.model,
        tokens=parser.tokens,
        finish_reason=_finish_reason(turn, parser),
        is_complete=turn.error is None and turn.stop_reason is None,
    )


def _finish_reason(turn: Turn, parser: StreamParser) -> str:
    if turn.error is not None:
        return FAILED
    return STOPPED if turn.stop_reason else parser.finish_reason or "stop"
