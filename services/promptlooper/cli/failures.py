"""Why runs failed: the most frequent reasons, with a run to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from promptlooper.cli.session import Target
from promptlooper.cli.wording import count, one_line
from promptlooper.experiment import Experiment, ExperimentState
from promptlooper.experiments import Experiments
from promptlooper.run import RunState

_READ = 1_000  # failed runs
_SHOWN = 3  # reasons


async def failure_lines(experiments: Experiments, experiment: Experiment, target: Target) -> list[str]:
    """Of the first thousand failed runs; nothing where none failed."""
    if not experiment.counts.failed:
        return []
    name = experiment.experiment_id
    page = await experiments.list_runs(name, _READ, states=(RunState.FAILED,))
    reasons: Counter[str] = Counter()
    first: dict[str, int] = {}
    for run in page.runs:
        if run.error is not None:
            reason = one_line(f"{run.error.reason}: {run.error.message}")
            reasons[reason] += 1
            first.setdefault(reason, run.run_index)
    lines = list(_lines(reasons, first, name, target, experiment.counts.failed))
    if lines and experiment.state is ExperimentState.COMPLETED:
        lines += ["Run them again, each from the stage that failed:", f"  promptlooper retry {name}{target.option()}"]
    return lines


def _lines(reasons: Counter[str], first: dict[str, int], name: str, target: Target, failed: int) -> Iterator[str]:
    shown = reasons.most_common(_SHOWN)
    for reason, times in shown:
        yield f"{count(times, 'run')} failed: {reason}"
        yield f"  promptlooper show {name} --run {first[reason]}{target.option()}"
    rest = failed - sum(times for _, times in shown)
    if shown and rest > 0:
        yield f"{count(rest, 'run')} failed for other reasons"
