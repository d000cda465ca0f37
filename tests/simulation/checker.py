"""What must be true when all is over, read from the rows and events that clients see."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from typing import Any

import sqlalchemy as sa
from simulation.observer import Observer, ProgressRow, SeenEvent
from simulation.provider import said
from simulation.schedule import PlannedExperiment, Schedule
from simulation.store import DatabaseServer

EXPERIMENT_ENDS = frozenset({"experiment.completed", "experiment.cancelled", "experiment.failed"})
RUN_ENDS = frozenset({"run.completed", "run.failed", "run.cancelled"})
_STAGES = """SELECT run_index, stage_index, output, error_json, tokens_in, tokens_out, cost_nanousd
    FROM stage_results WHERE experiment_id = ? ORDER BY run_index, stage_index"""


def check_end(observer: Observer, server: DatabaseServer, schedule: Schedule) -> None:
    for planned in schedule.experiments:
        experiment_id = observer.ids.get(planned.spec.name)
        if experiment_id is None:
            observer.breaks(f"experiment {planned.spec.name} was never created")
            continue
        row, events = observer.progress[experiment_id], observer.events[experiment_id]
        _check_row(observer, planned, row)
        _check_events(observer, row, events)
        stages = server.read(partial(_rows, experiment_id=experiment_id))
        _check_results(observer, planned, row, stages)


def _rows(connection: sa.Connection, experiment_id: str) -> list[Any]:
    raw: Any = connection.connection.driver_connection
    found: list[Any] = raw.execute(_STAGES, (experiment_id,)).fetchall()
    return found


def _check_row(observer: Observer, planned: PlannedExperiment, row: ProgressRow) -> None:
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
    if row.state == "COMPLETED" and row.cancelled and "cancel_run" not in verbs:
        say(f"{who} completed with {row.cancelled} cancelled runs, and nobody cancelled one")


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


def _check_results(observer: Observer, planned: PlannedExperiment, row: ProgressRow, stages: list[Any]) -> None:
    who, say = row.experiment_id, observer.breaks
    count = len(planned.spec.pipelines[0].stages)
    answered: Counter[int] = Counter()
    outputs: dict[int, str] = {}
    for run_index, stage_index, output, error, *_ in stages:
        if error is not None:
            continue
        prompt = f"{planned.spec.name} s{stage_index} n{run_index}"
        if stage_index:
            prompt += f" after {outputs.get(run_index)}"
        if output != said(prompt):
            say(f"{who}-{run_index} stage {stage_index} is {output!r}, not {said(prompt)!r}")
        outputs[run_index] = output
        answered[run_index] += 1
    for index, run in observer.runs[who].items():
        if answered[index] != run.next_stage:
            say(f"{who}-{index} stands at stage {run.next_stage} with {answered[index]} answers")
        if run.state == "COMPLETED" and answered[index] != count:
            say(f"{who}-{index} completed with {answered[index]} of {count} answers")
    for column, name in ((4, "tokens_in"), (5, "tokens_out")):
        total = sum(stage[column] or 0 for stage in stages)
        if total != getattr(row, name):
            say(f"{who}: {name} is {getattr(row, name)}, and its stages sum up to {total}")
    cost = sum(stage[6] or 0 for stage in stages)
    if row.spent_nanousd < cost or (not row.cost_unknown_calls and row.spent_nanousd != cost):
        say(f"{who}: {row.spent_nanousd} nanousd are spent, and its stages cost {cost}")
