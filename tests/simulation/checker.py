"""What must be true when all is over, read from the rows and events that clients see."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa
from simulation.observer import Observer
from simulation.provider import cost_of, said
from simulation.rows import ENDED, ProgressRow, SeenEvent
from simulation.schedule import Odds, PlannedExperiment, Schedule
from simulation.store import DatabaseServer

EXPERIMENT_ENDS = frozenset({"experiment.completed", "experiment.cancelled", "experiment.failed"})
RUN_ENDS = frozenset({"run.completed", "run.failed", "run.cancelled"})


class StoredStage(NamedTuple):
    run_index: int
    stage_index: int
    output: str
    error_json: str | None
    cached: bool
    tokens_in: int | None
    tokens_out: int | None
    cost_nanousd: int | None
    cost_saved_nanousd: int | None


class StoredScore(NamedTuple):
    run_index: int
    name: str
    value: float | None
    passed: bool | None
    error: str | None


_STAGES = f"""SELECT {", ".join(StoredStage._fields)} FROM stage_results
    WHERE experiment_id = ? ORDER BY run_index, stage_index"""
_SCORES = f"""SELECT {", ".join(StoredScore._fields)} FROM scores
    WHERE experiment_id = ? ORDER BY run_index, score_index"""


def check_end(observer: Observer, server: DatabaseServer, schedule: Schedule) -> None:
    for planned in schedule.experiments:
        experiment_id = observer.ids.get(planned.spec.name)
        if experiment_id is None:
            observer.breaks(f"experiment {planned.spec.name} was never created")
            continue
        row, events = observer.progress[experiment_id], observer.events[experiment_id]
        _check_row(observer, planned, row, schedule.odds)
        _check_events(observer, row, events)
        stages, scores = server.read(partial(_stored, experiment_id=experiment_id))
        answered = _check_stages(observer, planned, row, stages)
        _check_runs(observer, planned, row, answered, scores)
        _check_totals(observer, row, stages)


def _stored(connection: sa.Connection, experiment_id: str) -> tuple[list[StoredStage], list[StoredScore]]:
    raw: Any = connection.connection.driver_connection
    stages = raw.execute(_STAGES, (experiment_id,)).fetchall()
    scores = raw.execute(_SCORES, (experiment_id,)).fetchall()
    return [StoredStage(*row) for row in stages], [StoredScore(*row) for row in scores]


def _check_row(observer: Observer, planned: PlannedExperiment, row: ProgressRow, odds: Odds) -> None:
    who, say = row.experiment_id, observer.breaks
    if not row.ended or row.running or row.returned or row.reserved_nanousd or row.reserved_tokens:
        say(f"{who} did not end in order: {row}")
    if row.completed + row.failed + row.cancelled != row.total or row.total != len(planned.spec.inputs):
        say(f"{who}: not all {len(planned.spec.inputs)} runs ended: {row}")
    verbs = {command.verb for command in planned.commands}
    limits = planned.spec.limits
    budget = limits.budget_nanousd is not None or limits.budget_tokens is not None
    allowed = {
        "USER": "cancel" in verbs,
        "BUDGET": budget,
        "TIMEOUT": limits.experiment_timeout is not None,
    }
    if row.state == "CANCELLED" and not allowed.get(row.reason):
        say(f"{who} was cancelled, and nobody asked for it: {row}")
    if row.state == "FAILED":
        say(f"{who} failed: {row}")
    if row.state == "COMPLETED":
        may_be_cancelled = {command.number for command in planned.commands if command.verb == "cancel_run"}
        cancelled = {index for index, run in observer.runs[who].items() if run.state == "CANCELLED"}
        if row.cancelled != len(cancelled) or not cancelled <= may_be_cancelled:
            say(f"{who} completed with cancelled runs {cancelled}, only {may_be_cancelled} may be: {row}")
        if row.failed and not odds.model_fails and limits.run_timeout is None:
            say(f"{who} completed with {row.failed} failed runs, and nothing made them fail")


def _check_events(observer: Observer, row: ProgressRow, events: list[SeenEvent]) -> None:
    who, say = row.experiment_id, observer.breaks
    ends = Counter(event.generation for event in events if event.kind in EXPERIMENT_ENDS)
    if any(times > 1 for times in ends.values()) or ends[row.generation] != 1:
        say(f"{who} ended so often in each generation: {dict(ends)}, now is {row.generation}")
    if events and events[0].kind != "experiment.created":
        say(f"{who} began with {events[0]}")
    by_run: dict[int, list[SeenEvent]] = defaultdict(list)
    for event in events:
        if event.run_index is not None:
            by_run[event.run_index].append(event)
    for index, of_run in by_run.items():
        _check_run_events(observer, f"{who}-{index}", of_run)


def _check_run_events(observer: Observer, who: str, events: list[SeenEvent]) -> None:
    kinds = [event.kind for event in events]
    if kinds[0] != "run.started" or kinds.count("run.started") != 1:
        observer.breaks(f"{who} did not start once, and first: {kinds}")
    stages = [event.stage_index for event in events if event.kind == "run.stage_completed"]
    if stages != list(range(len(stages))):
        observer.breaks(f"{who}: its stages were completed in this order: {stages}")
    ended: SeenEvent | None = None
    for event in events:
        if ended is not None and (event.generation == ended.generation or ended.kind == "run.completed"):
            observer.breaks(f"{who}: {event} came after {ended}")
        if event.kind in RUN_ENDS:
            ended = event
    if ended is None:
        observer.breaks(f"{who} never ended: {kinds}")


def _check_stages(
    observer: Observer, planned: PlannedExperiment, row: ProgressRow, stages: list[StoredStage]
) -> Counter[int]:
    """Every answer is the model's to the right prompt, and costs what that costs. Returns how many each run has."""
    answered: Counter[int] = Counter()
    outputs: dict[int, str] = {}
    for stage in stages:
        if stage.error_json is not None:
            continue
        index, who = stage.run_index, f"{row.experiment_id}-{stage.run_index} stage {stage.stage_index}"
        prompt = f"{planned.spec.name} s{stage.stage_index} n{index}"
        if stage.stage_index:
            prompt += f" after {outputs.get(index)}"
        if stage.output != said(prompt):
            observer.breaks(f"{who} is {stage.output!r}, not {said(prompt)!r}")
        cost = cost_of(prompt)
        costs = (0, cost) if stage.cached else (cost, 0)
        if (stage.cost_nanousd, stage.cost_saved_nanousd) != costs:
            observer.breaks(f"{who} should cost and save {costs}: {stage}")
        if (stage.tokens_in, stage.tokens_out) != (len(prompt), len(said(prompt))):
            observer.breaks(f"{who} was not counted as the model did: {stage}")
        outputs[index] = stage.output
        answered[index] += 1
    return answered


def _check_runs(
    observer: Observer,
    planned: PlannedExperiment,
    row: ProgressRow,
    answered: Counter[int],
    scores: list[StoredScore],
) -> None:
    """A completed run has all its answers and the full score; no other has a score."""
    count, names = len(planned.spec.pipelines[0].stages), [scorer.name for scorer in planned.spec.scorers]
    scores_of: dict[int, list[StoredScore]] = defaultdict(list)
    for score in scores:
        scores_of[score.run_index].append(score)
    for index, run in observer.runs[row.experiment_id].items():
        who, completed = f"{row.experiment_id}-{index}", run.state == "COMPLETED"
        if run.state not in ENDED:
            observer.breaks(f"{who} has not ended: {run}")
        if answered[index] != run.next_stage:
            observer.breaks(f"{who} stands at stage {run.next_stage} with {answered[index]} answers")
        if completed and answered[index] != count:
            observer.breaks(f"{who} completed with {answered[index]} of {count} answers")
        scored = completed and bool(names)
        if [score.name for score in scores_of[index]] != (names if scored else []):
            observer.breaks(f"{who} is {run.state} and has the scores {scores_of[index]}")
        for score in scores_of[index]:
            if score.value != 1 or not score.passed or score.error is not None:
                observer.breaks(f"{who} got {score}, and its answer is right")
        if (run.score, bool(run.passed)) != ((1, True) if scored else (None, False)):
            observer.breaks(f"{who} has the score {run.score}, passed {run.passed}")
        if (run.state == "FAILED") != (run.error_json is not None):
            observer.breaks(f"{who} is {run.state} with the error {run.error_json}")


def _check_totals(observer: Observer, row: ProgressRow, stages: list[StoredStage]) -> None:
    who, say = row.experiment_id, observer.breaks
    for name in ("tokens_in", "tokens_out"):
        total = sum(getattr(stage, name) or 0 for stage in stages)
        if total != getattr(row, name):
            say(f"{who}: {name} is {getattr(row, name)}, and its stages sum up to {total}")
    cost = sum(stage.cost_nanousd or 0 for stage in stages)
    paid = sum((stage.tokens_in or 0) + (stage.tokens_out or 0) for stage in stages if not stage.cached)
    if (row.spent_nanousd, row.spent_tokens) != (cost, paid) or row.cost_unknown_calls:
        say(f"{who}: its stages cost {cost} nanousd and {paid} tokens: {row}")
    for what, may_want in (("nanousd", observer.billed[who]), ("tokens", observer.billed_tokens[who])):
        budget = getattr(row, f"budget_{what}")
        if budget is not None and may_want > row.counted(what):
            say(f"{who}: calls for {may_want} {what} were made, and {row.counted(what)} are counted")
        if budget is None and getattr(row, f"uncertain_{what}"):
            say(f"{who} has no budget of {what}, and some are uncertain: {row}")
