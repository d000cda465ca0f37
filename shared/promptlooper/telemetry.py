"""Logging set up: one style for all services, on stderr."""

from __future__ import annotations

import logging
import sys
import time

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """`2026-11-23T15:00:00.123Z INFO runner message key=value`; what is given as `extra` comes last."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        # One record is one line, whatever was put into it; only tracebacks go over several.
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        parts = [f"{seconds}.{int(record.msecs):03d}Z", record.levelname, self._service, message]
        parts += [f"{name}={_value(value)}" for name, value in vars(record).items() if name not in _OWN]
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _value(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(c.isspace() or c in "\"'=" for c in text) else text


def set_up_logging(service: str, level: str = "info") -> None:
    """Sends all logging to stderr in our style, at `level`; what was set up before is replaced."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for chatty in ("httpx", "httpcore", "asyncio", "alembic", "nats"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
