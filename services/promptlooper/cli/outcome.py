"""How a command ends: its exit code, and failures as people and programs read them."""

from __future__ import annotations

from typing import Any

from promptlooper.errors import (
    DomainError,
    InvalidArgument,
    InvalidExperiment,
    RequestIdReused,
    UnknownProvider,
)
from promptlooper.experiment import ExperimentSummary

OK = 0
FAILED = 1
USAGE = 2
GATE_MISSED = 100

# NotAvailableYet is none of them: it is what a server says that is another service, or of another version.
_USAGE_ERRORS = (InvalidArgument, InvalidExperiment, RequestIdReused, UnknownProvider)


def exit_code(summary: ExperimentSummary) -> int:
    """Of a command that followed an experiment. Signals (128 + n) and wrong usage (2) come before this."""
    if not summary.finished:
        return FAILED
    return OK if summary.gates_met else GATE_MISSED


class Refused(Exception):
    """A command that cannot go on. `message` may have several lines."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "INTERNAL",
        code: int = FAILED,
        file: str | None = None,
        line: int | None = None,
        located: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.file = file
        self.line = line
        self.located = located  # each line says its file and line already


def code_of(error: DomainError) -> int:
    return USAGE if isinstance(error, _USAGE_ERRORS) else FAILED


def error_document(reason: str, message: str, file: str | None = None, line: int | None = None) -> dict[str, Any]:
    """What `--json` prints on failure."""
    return {"error": {"reason": reason, "message": message, "file": file, "line": line}}
