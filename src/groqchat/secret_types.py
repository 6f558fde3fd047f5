"""The types of settings that contain passwords and keys."""

import re
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, SecretStr

# What every server accepts in the value of a header.
HEADER_VALUE = re.compile(r"[ -~]*")


def is_header_value(text: str) -> bool:
    """Return whether a text may be the value of an HTTP header."""
    return HEADER_VALUE.fullmatch(text) is not None


def _blank_is_none(secret: SecretStr | None) -> SecretStr | None:
    return secret if secret is not None and secret.get_secret_value().strip() else None


def _fits_a_header(secret: SecretStr | None) -> SecretStr | None:
    if secret is None:
        return None
    # A file that contains a key usually ends with a line break.
    text = secret.get_secret_value().strip()
    if not is_header_value(text):
        raise ValueError("must contain only printable ASCII characters, on one line")
    return SecretStr(text)


Password: TypeAlias = Annotated[SecretStr | None, AfterValidator(_blank_is_none)]
ApiKey: TypeAlias = Annotated[Password, AfterValidator(_fits_a_header)]
