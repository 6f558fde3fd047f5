"""The log: text or JSON, one line for each entry, with the id of its request."""

import logging
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import orjson

from groqchat.http.access_log import ACCESS_FIELDS
from groqchat.http.request_id import request_id

FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"

# At DEBUG these loggers write request bodies, headers or commands, which contain prompts and keys.
NOISY_LOGGERS = ("groq", "httpx", "httpcore", "redis", "asyncio")

log = logging.getLogger("groqchat")


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class JsonFormatter(logging.Formatter):
    """Formats an entry as a JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object; the fields of an access log entry are at its top level."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "request_id": request_id.get(),
            "message": _valid(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = _valid(self.formatException(record.exc_info))
        line.update(getattr(record, ACCESS_FIELDS, {}))
        return orjson.dumps(line).decode()


def configure_logging(level: str, style: Literal["text", "json"]) -> None:
    """Log to standard error at `level`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else logging.Formatter(FORMAT))
    handler.addFilter(_RequestIdFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    if style == "json":
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_crash


def report_failure(text: str) -> None:
    """Report why a command failed, on standard error and in the format of the log."""
    handlers = logging.getLogger().handlers
    if handlers and isinstance(handlers[0].formatter, JsonFormatter):
        log.critical("%s", text)
    else:
        print(f"groqchat: {text}", file=sys.stderr)


def _log_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log.critical("groqchat ended unexpectedly", exc_info=(kind, error, trace))


def _valid(text: str) -> str:
    """Return a text without lone surrogates, which JSON cannot contain."""
    return text.encode(errors="replace").decode()
