"""Exit codes, as interface §2 has them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from promptlooper.cli.outcome import exit_code
from promptlooper.experiment import Experiment, ExperimentState, ExperimentSummary, GateResult, RunCounts

COMPLETED = ExperimentState.COMPLETED


def score_gate(passed: bool, got: float | None = 0.5) -> GateResult:
    return GateResult("min_scores.icontains", "0123456789ab", 0.8, got, passed)


def failures_gate(allowed: int, failed: int) -> GateResult:
    return GateResult("max_failed_runs", "", allowed, failed, failed <= allowed)


@pytest.mark.parametrize(
    ("state", "failed", "gates", "code"),
    [
        (COMPLETED, 0, [], 0),
        (COMPLETED, 0, [score_gate(True)], 0),
        (COMPLETED, 1, [], 1),
        (COMPLETED, 0, [score_gate(False)], 100),
        (COMPLETED, 0, [score_gate(False, got=None)], 100),
        (COMPLETED, 0, [score_gate(True), score_gate(False)], 100),
        (COMPLETED, 1, [score_gate(False)], 1),
        (COMPLETED, 1, [failures_gate(1, 1)], 0),
        (COMPLETED, 2, [failures_gate(1, 2)], 1),
        (COMPLETED, 1, [failures_gate(1, 1), score_gate(False)], 100),
        (COMPLETED, 2, [failures_gate(1, 2), score_gate(False)], 1),
        (COMPLETED, 1, [failures_gate(3, 1), failures_gate(0, 1)], 1),
        (ExperimentState.CANCELLED, 0, [], 1),
        (ExperimentState.CANCELLED, 0, [score_gate(False)], 1),
        (ExperimentState.FAILED, 0, [], 1),
        (ExperimentState.RUNNING, 0, [], 1),
    ],
)
def test_exit_code_follows_the_precedence(
    state: ExperimentState, failed: int, gates: list[GateResult], code: int
) -> None:
    experiment = Experiment(
        "abc", "default", "test", state, RunCounts(9, failed=failed), datetime(2026, 1, 2, tzinfo=UTC)
    )
    assert exit_code(ExperimentSummary(experiment, (), tuple(gates))) == code
