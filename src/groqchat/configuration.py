"""The sources of settings, the environment and `.env`, and warnings for unknown names."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from groqchat.errors import ConfigurationError
from groqchat.settings import Settings
from groqchat.urls import without_credentials
from groqchat.validation_messages import message_of, similar_name

# The names of settings in earlier versions.
RENAMED = {
    "ACCESS_LOG_SHARE": "ACCESS_LOG_SAMPLE_RATE",
    "MAX_TURNS_IN_FLIGHT": "MAX_CONCURRENT_TURNS",
    "STREAM_STALL_S": "STREAM_WRITE_TIMEOUT_S",
}
# A variable with one of these prefixes is meant for the service.
PREFIXES = ("REDIS_", "GROQ_", "CHAT_")
# A setting is suggested for a variable with one of the prefixes if it is as similar as this, and
# any other variable is reported only if it is nearly equal to a setting. Many other programs have
# names that resemble one word, so these have their own rule: see `_misspelled`.
MIN_SIMILARITY = 0.65
MIN_SIMILARITY_WITHOUT_PREFIX = 0.85
# Variables that Docker and Kubernetes set for a linked container or a service, the image of Redis
# for itself, and the Groq SDK reads.
FOREIGN_NAME = re.compile(
    r".*_SERVICE_(HOST|PORT)(_\w+)?|.*_PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?|.*_ENV_\w+"
    r"|REDIS_(NAME|VERSION|DOWNLOAD_(URL|SHA\d*))|GROQ_(LOG|CUSTOM_HEADERS)"
)
FOREIGN_VALUE = re.compile(r"(tcp|udp|sctp)://.*")
# Names without other characters can be part of a log line.
NAME = re.compile(r"[A-Z0-9_]{1,64}")
# Logs a warning for each line that it cannot parse, whenever `.env` is read.
DOTENV_LOGGER = "dotenv.main"


class _GivenSettings(Settings):
    """Settings that come only from arguments."""

    @classmethod
    def settings_customise_sources(  # type: ignore[override] # the sources are passed by name
        cls, *_: type[BaseSettings], **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the arguments as the only source."""
        return (sources["init_settings"],)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; one ConfigurationError lists every invalid value."""
    return _validated(Settings, overrides)


def given_settings(**values: Any) -> Settings:
    """Return settings with these values; neither the environment nor `.env` is read."""
    return _validated(_GivenSettings, values)


def _validated(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    try:
        with _dotenv_warnings() as warnings:
            return kind(**values)
    except ValidationError as error:
        problems = [
            ": ".join([*(str(part).upper() for part in problem["loc"]), message_of(problem)])
            for problem in error.errors(include_url=False, include_input=False)
        ]
        text = without_credentials("\n".join([*problems, *warnings]))
        raise ConfigurationError(text) from None
    except UnicodeDecodeError:
        raise ConfigurationError(".env is not encoded in UTF-8") from None
    except OSError as error:
        raise ConfigurationError(f".env cannot be read: {error.strerror}") from None


def env_file() -> Path | None:
    """Return the absolute path of `.env`; None if there is no such file."""
    path = _env_path()
    return path if path.is_file() else None


def _env_path() -> Path:
    return Path(str(Settings.model_config["env_file"])).resolve()


def sources() -> dict[str, str]:
    """Return the source of each setting that has a value: `environment` or `.env`."""
    with _dotenv_warnings():
        found = dict.fromkeys(_given(_env_file_values()), ".env")
    return found | dict.fromkeys(_given(os.environ), "environment")


def ineffective_variables() -> Iterator[str]:
    """Yield a warning for each line of `.env` and each variable that seems meant for a setting."""
    with _dotenv_warnings() as warnings:
        env_file_values = _env_file_values()
    yield from warnings
    if _env_path().is_dir():
        # Docker creates a directory if the file to mount does not exist.
        yield ".env is a directory and has no effect"
    seen = set()
    for where, variables in (("the environment", os.environ), (".env", env_file_values)):
        for name, value in variables.items():
            upper = name.upper()
            if upper not in seen and NAME.fullmatch(upper):
                seen.add(upper)
                problem = _problem_of(upper, value or "")
                if problem is not None:
                    yield f"{upper} in {where} has no effect: {problem}"


def _problem_of(name: str, value: str) -> str | None:
    field = name.lower()
    if field in Settings.model_fields:
        return None
    if name in RENAMED:
        return f"the setting is now named {RENAMED[name]}"
    if FOREIGN_NAME.fullmatch(name) or FOREIGN_VALUE.fullmatch(value):
        return None
    has_prefix = name.startswith(PREFIXES)
    meant = _meant(field, has_prefix=has_prefix)
    if meant is not None:
        return f"did you mean {meant.upper()}?"
    return "it is not a setting" if has_prefix else None


def _meant(name: str, *, has_prefix: bool) -> str | None:
    """Return the setting that was probably meant."""
    if not has_prefix and "_" not in name:
        words = (field for field in Settings.model_fields if "_" not in field)
        return next((word for word in words if name in _misspelled(word)), None)
    return similar_name(
        name,
        Settings.model_fields,
        min_similarity=MIN_SIMILARITY if has_prefix else MIN_SIMILARITY_WITHOUT_PREFIX,
    )


def _misspelled(word: str) -> Iterator[str]:
    """Yield a word with two neighboring letters swapped, or with one letter doubled."""
    for index, letter in enumerate(word):
        yield word[:index] + letter + word[index:]
        yield word[:index] + word[index : index + 2][::-1] + word[index + 2 :]


def _env_file_values() -> Mapping[str, str | None]:
    path = env_file()
    return {} if path is None else dotenv_values(path)


@contextmanager
def _dotenv_warnings() -> Iterator[list[str]]:
    """Collect the warnings of python-dotenv, which would appear before the log has its format."""
    warnings: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        warnings.append(f".env: {record.getMessage()}")
        return False

    logger = logging.getLogger(DOTENV_LOGGER)
    logger.addFilter(collect)
    try:
        yield warnings
    finally:
        logger.removeFilter(collect)


def _given(variables: Mapping[str, str | None]) -> Iterator[str]:
    """Yield the names of the settings that have a value; an empty one counts as not set."""
    for name, value in variables.items():
        if value and name.lower() in Settings.model_fields:
            yield name.lower()
