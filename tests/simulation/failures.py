"""What a run may fail of, and when an experiment may run out of budget: everything else is a broken promise."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from simulation.provider import LONGEST_WAIT, Call
from simulation.rows import ProgressRow, RunRow
from simulation.schedule import Schedule

from promptlooper.runner.answers import LAST_RETRY
from promptlooper.testing.simulation import Process, SimulatedLoop


class Failures:
    """Knows each run's claim and the calls since then, and judges how it failed."""

    def __init__(self, loop: SimulatedLoop, schedule: Schedule, breaks: Callable[[str], None]) -> None:
        self._loop, self._odds, self._breaks = loop, schedule.odds, breaks
        self._limits = {planned.spec.name: planned.spec.limits for planned in schedule.experiments}
        self._calls: dict[tuple[str, int], list[Call]] = defaultdict(list)  # since the run was claimed

    def claimed(self, experiment_id: str, run_index: int) -> None:
        self._calls[experiment_id, run_index] = []

    def called(self, experiment_id: str, call: Call) -> None:
        self._calls[experiment_id, call.asked.run_index].append(call)

    def judge(self, experiment_id: str, name: str, run: RunRow, writer: Process) -> None:
        """A run has become FAILED: only for what became of its last question, or for want of time."""
        error = json.loads(run.error_json or "{}")
        reason, stage = error.get("reason"), error.get("stage_index")
        who = f"{experiment_id}-{run.run_index}"
        if stage != run.next_stage:
            self._breaks(f"{who} failed at stage {run.next_stage}, and its error says stage {stage}: {error}")
        asked = [
            call
            for call in self._calls[experiment_id, run.run_index]
            if call.process is writer and call.asked.stage_index == run.next_stage
        ]
        came = asked[-1].outcome if asked else "never asked"
        left = self._left(run) if self._limits[name].run_timeout is not None else None
        excused = {
            "PROVIDER_UNAVAILABLE": came == "failed",
            "PROVIDER_RATE_LIMITED": came == "refused" and left is not None and left <= LONGEST_WAIT,
            "SERVICE_UNAVAILABLE": self._odds.adapter_away > 0 and left is not None and left <= LAST_RETRY,
            "DEADLINE_EXCEEDED": left is not None and left <= 0,
        }
        if not excused.get(reason, False):
            self._breaks(f"{who} failed without excuse, its last call was {came}, {left} s were left: {error}")

    @staticmethod
    def _left(run: RunRow) -> float | None:
        """Seconds of the run's time that were left when it ended, by the clock of its Runner."""
        if run.run_deadline_us is None or run.ended_us is None:
            return None
        return (run.run_deadline_us - run.ended_us) / 1e6


def could_go_on(now: ProgressRow, before: ProgressRow, runs: Mapping[int, RunRow]) -> Iterable[str]:
    """What the budgets still admitted when an experiment was ended for their sake: `before` and `runs` were then."""
    waiting = [(run.reserved_nanousd, run.reserved_tokens) for run in runs.values() if run.state == "PENDING"]
    if before.next_index < before.total:
        waiting.append((0, 0))
    for nanousd, tokens in waiting:
        needs = {"nanousd": max(now.unit_nanousd, nanousd), "tokens": max(now.unit_tokens, tokens)}
        budgets = {what: getattr(now, f"budget_{what}") for what in needs}
        if all(budgets[what] is None or now.counted(what) + need <= budgets[what] for what, need in needs.items()):
            yield f"a call that needs {needs} of {budgets}, when {now} had counted"
