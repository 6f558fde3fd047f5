"""The API key and the organization of the service, masked in texts of Groq that clients receive."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import SecretStr

ORGANISATION = re.compile(rb"\borg_[A-Za-z0-9]+")
# The keys of Groq. Those of other servers have no common form, so `masking` names them.
GROQ_KEY = re.compile(rb"\bgsk_[A-Za-z0-9]+")
MASK = b"***"
# A shorter key is a placeholder for a server that needs none, such as `none` or `EMPTY`.
MIN_KEY_CHARS = 6

# The forms in which a text can contain a key, once for each service of this process that uses it.
_masked: list[bytes] = []


@contextmanager
def masking(key: SecretStr | None) -> Iterator[None]:
    """Let `redact` mask an API key in the context."""
    text = key.get_secret_value() if key is not None else ""
    forms = _forms(text) if len(text) >= MIN_KEY_CHARS else frozenset()
    _masked.extend(forms)
    try:
        yield
    finally:
        for form in forms:
            _masked.remove(form)


def redact(content: bytes) -> bytes:
    """Return a text of Groq, which may be JSON, without API keys and names of organizations."""
    for form in _masked:
        content = content.replace(form, MASK)
    content = GROQ_KEY.sub(MASK, content)
    return ORGANISATION.sub(b"org_***", content)


def _forms(key: str) -> frozenset[bytes]:
    """Return a key as such and as a part of JSON, in which `/` may be escaped too."""
    escaped = json.dumps(key)[1:-1]
    return frozenset(form.encode() for form in (key, escaped, escaped.replace("/", r"\/")))
