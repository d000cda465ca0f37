"""Runners on the real store in simulated time. A failure prints its seed; PROMPTLOOPER_SEED=n repeats it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulation.world import simulated

from promptlooper.run import RunError, RunState
from promptlooper.runner.engine import Engine
from promptlooper.runner.ledger import Ledger, RunRow
from promptlooper.runner.loop import ExperimentLoop
from promptlooper.runner.outcomes import Outcome, RunEnded
from promptlooper.runner.turn import Turn

SEEDS, AT_ONCE = 100, 25
ROOT = Path(__file__).parents[3]


def seeds() -> list[range]:
    if seed := os.environ.get("PROMPTLOOPER_SEED"):
        return [range(int(seed), int(seed) + 1)]
    return [range(start, start + AT_ONCE) for start in range(0, SEEDS, AT_ONCE)]


@pytest.mark.parametrize("some", seeds(), ids=str)
def test_runners_keep_their_promises_whatever_happens(some: Sequence[int]) -> None:
    broken = [str(report) for report in map(simulated, some) if report.broken]
    assert not broken, "\n".join(broken)


def test_a_seed_gives_the_same_trace_again_and_in_another_process() -> None:
    some = [3, 17, 34, 50, 71]
    first = [simulated(seed) for seed in some]
    again = [simulated(seed) for seed in reversed(some)][::-1]
    assert [report.trace for report in again] == [report.trace for report in first]
    program = f"import json, simulation.world as w; print(json.dumps([w.simulated(s).digest for s in {some}]))"
    paths = [str(ROOT / part) for part in ("services", "shared", "tests")]
    for hash_seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(told.stdout) == [report.digest for report in first]


def without_guard(patch: pytest.MonkeyPatch) -> None:
    guarded = Turn.take

    def take(self: Turn, outcomes: Sequence[Outcome], rows: dict[int, RunRow]) -> None:
        for outcome in outcomes:
            if (row := rows.get(outcome.run_index)) is not None:
                row.owner, row.lease_epoch = self.runner_id, outcome.lease_epoch
        guarded(self, outcomes, rows)

    patch.setattr(Turn, "take", take)


def without_a_lease_term_before_reaping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Engine, "_lease_since", property(lambda self: -1e9, lambda self, value: None), raising=False)


def without_adoption(patch: pytest.MonkeyPatch) -> None:
    async def adopt(self: ExperimentLoop, sent: list[Outcome]) -> tuple[list[Outcome], list[Any]]:
        return sent, []

    patch.setattr(ExperimentLoop, "_adopt", adopt)


def without_budgets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "fits", lambda self, run: True)


def without_a_cap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Turn, "room", lambda self, slots: min(slots, self.ledger.pending))


def without_release(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "release", lambda self, run: None)


def without_counting_what_was_given_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "keep_reservation", lambda self, run: None)


def failing_what_was_claimed_again(reason: str) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        ended = Turn._run_ended

        def run_ended(self: Turn, outcome: RunEnded, row: RunRow) -> None:
            if row.lease_epoch > 1 and outcome.state is RunState.COMPLETED:
                error = RunError(reason, "it was lost", row.next_stage)
                outcome = replace(outcome, state=RunState.FAILED, scores=(), score=None, passed=None, error=error)
            ended(self, outcome, row)

        patch.setattr(Turn, "_run_ended", run_ended)

    return plant


def without_scores_of_runs_of_the_dead(patch: pytest.MonkeyPatch) -> None:
    ended = Turn._run_ended

    def run_ended(self: Turn, outcome: RunEnded, row: RunRow) -> None:
        ended(self, replace(outcome, scores=()) if row.lease_epoch > 1 else outcome, row)

    patch.setattr(Turn, "_run_ended", run_ended)


def without_the_last_of_the_budget(patch: pytest.MonkeyPatch) -> None:
    fits = Ledger.fits

    def fits_twice(self: Ledger, run: RunRow) -> bool:
        need = max(self.unit_nanousd, run.reserved_nanousd), max(self.unit_tokens, run.reserved_tokens)
        return fits(self, replace(run, reserved_nanousd=2 * need[0], reserved_tokens=2 * need[1]))

    patch.setattr(Ledger, "fits", fits_twice)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("plant", "found_as"),
    [
        (without_guard, "which lives, and"),
        (without_a_lease_term_before_reaping, "for dead, which lives"),
        (without_adoption, "not everything ended"),
        (without_budgets, "more than the budget"),
        (without_a_cap, "max_concurrency is"),
        (without_release, "are reserved, and its running runs hold"),
        (without_counting_what_was_given_up, "are counted"),
        (failing_what_was_claimed_again("INTERNAL"), "failed without excuse"),
        (failing_what_was_claimed_again("PROVIDER_UNAVAILABLE"), "failed without excuse"),
        (failing_what_was_claimed_again("DEADLINE_EXCEEDED"), "failed without excuse"),
        (without_scores_of_runs_of_the_dead, "and has the scores"),
        (without_the_last_of_the_budget, "ended for its budget, which admits"),
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], found_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    reports = map(simulated, range(2 * SEEDS))
    assert any(found_as in broken for report in reports for broken in report.broken)
