"""How a command ends: its exit code, and failures as people and programs read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promptlooper.errors import (
    DomainError,
    InvalidArgument,
    InvalidExperiment,
    RequestIdReused,
    UnknownProvider,
)
from promptlooper.experiment import ExperimentState, GateResult

OK = 0
FAILED = 1
USAGE = 2
GATE_MISSED = 100

# NotAvailableYet is none of them: it is what a server says that is another service, or of another version.
_USAGE_ERRORS = (InvalidArgument, InvalidExperiment, RequestIdReused, UnknownProvider)


def exit_code(state: ExperimentState, failed_runs: int, gates: Sequence[GateResult]) -> int:
    """Of a command that followed an experiment to `state`. Signals (128 + n) and wrong usage (2) come before this.

    A gate on `max_failed_runs` says how many failed runs are allowed; without one, none is.
    """
    if state is not ExperimentState.COMPLETED:
        return FAILED
    allowed = min((gate.wanted for gate in gates if gate.name == "max_failed_runs"), default=0)
    if failed_runs > allowed:
        return FAILED
    return OK if all(gate.passed for gate in gates) else GATE_MISSED


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
