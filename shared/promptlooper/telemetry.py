"""Logging set up: one style for all services, on stderr, and what the work at hand belongs to."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import orjson

from promptlooper import tracing

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


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, message, what is given as `extra`, and where they are known
    experiment_id, run_id and trace_id."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **_belonging(),
        }
        line.update((name, value) for name, value in vars(record).items() if name not in _OWN)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


_FORMATTERS = {"text": LineFormatter, "json": JsonFormatter}
_about: ContextVar[tuple[str, int | None]] = ContextVar("about", default=("", None))


def work_on(experiment_id: str, run_index: int | None = None) -> None:
    """Says what this task works on from now on: for structured logs."""
    _about.set((experiment_id, run_index))


def _belonging() -> dict[str, str]:
    experiment_id, run_index = _about.get()
    found = {"experiment_id": experiment_id} if experiment_id else {}
    if experiment_id and run_index is not None:
        found["run_id"] = f"{experiment_id}-{run_index}"
    if trace_id := tracing.trace_id():
        found["trace_id"] = trace_id
    return found


def _value(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(c.isspace() or c in "\"'=" for c in text) else text


class LogLimit:
    """Lines that anybody can cause: `lines` a second, and how many were left out since the last one."""

    def __init__(self, lines: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._lines, self._monotonic = lines, monotonic
        self._began, self._written, self._left_out = float("-inf"), 0, 0

    def left_out(self) -> int | None:
        """Before this line; None where this one is to be left out too."""
        now = self._monotonic()
        if now - self._began >= 1.0:
            self._began, self._written = now, 0
        if self._written >= self._lines:
            self._left_out += 1
            return None
        self._written += 1
        before, self._left_out = self._left_out, 0
        return before


def set_up_logging(service: str, level: str = "info", form: str = "text") -> None:
    """Sends all logging to stderr in our style (`form`: text or json), at `level`; what was set up before is
    replaced."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS.get(form, LineFormatter)(service))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for chatty in ("httpx", "httpcore", "asyncio", "alembic", "nats"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
