"""Log lines: one event each, as text for people or JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any


def event(logger: logging.Logger, what: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log that something happened; `fields` say to what (job, slot, node) and how."""
    if logger.isEnabledFor(level):
        logger.log(level, what, extra={"fields": fields})


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.123 INFO what key=value ...`; text from the wire can't break a line."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        parts = [f"{when}.{int(record.msecs):03d}", record.levelname, _one_line(record.getMessage())]
        parts += [f"{key}={_shown(value)}" for key, value in getattr(record, "fields", {}).items()]
        text = " ".join(parts)
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, event, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _shown(value: Any) -> str:
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def _one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def set_up(form: str, level: str) -> None:
    """Log to standard error, in the form and from the level that LOG_FORMAT and LOG_LEVEL name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger("carod")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
    # No formatter here asks for these, and finding them out costs as much as the rest of a line (logging HOWTO,
    # "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
