"""What the Runner asks of the database besides turns: each function is one short transaction's work on a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from promptlooper.errors import ExperimentNotEnded, ExperimentNotFound, RequestIdReused
from promptlooper.experiment import Experiment, ExperimentSpec, ExperimentState
from promptlooper.experiments import ExperimentFilter
from promptlooper.failpoints import Failpoints
from promptlooper.jsonvalue import json_text, json_value
from promptlooper.run import RunState
from promptlooper.runner.spec.expand import shape
from promptlooper.runner.spec.normal import row_from_json, row_to_json, spec_from_json, spec_to_json
from promptlooper.runner.store.models import (
    events,
    experiments,
    inputs,
    progress,
    relay,
    requests,
    runs,
    scores,
    stage_results,
)
from promptlooper.runner.store.rows import experiment_of
from promptlooper.runner.store.turns import RUN_COLUMNS, locked_ledger, number_events, pending_rows, run_row, write
from promptlooper.runner.turn import NewEvent, Turn, experiment_facts

INPUTS_PER_CHUNK = 200
REQUEST_KEPT_US = 7 * 24 * 3600 * 1_000_000
EXPERIMENT = sa.select(
    *(c for c in experiments.c if c.name != "spec_json"), *(c for c in progress.c if c.name != "experiment_id")
).join(progress, progress.c.experiment_id == experiments.c.experiment_id)
ACTIVE = [ExperimentState.PENDING.value, ExperimentState.RUNNING.value, ExperimentState.CANCELLING.value]


@dataclass(frozen=True, slots=True)
class NewExperiment:
    experiment_id: str
    spec: ExperimentSpec
    body_sha256: str
    request_id: str  # "" for none
    unit_nanousd: int  # what one call reserves of the budgets, to begin with
    unit_tokens: int


@dataclass(frozen=True, slots=True)
class Active:
    """An experiment that has something to do."""

    experiment_id: str
    state: ExperimentState
    running: int
    pending: int
    max_concurrency: int


def create(connection: sa.Connection, new: NewExperiment, now_us: int) -> str:
    """Stores an experiment with its first event and returns its id, or the id that the request_id got before. Raises
    RequestIdReused where that was for another body. Of concurrent calls with one request_id, one stores."""
    if new.request_id:
        known = _known_request(connection, new)
        if known is not None:
            return known
        row = {"body_sha256": new.body_sha256, "experiment_id": new.experiment_id, "created_us": now_us}
        try:
            # The unique key settles races: a second writer waits here for the first one's commit.
            with connection.begin_nested():
                connection.execute(sa.insert(requests), {"request_id": new.request_id, **row})
        except IntegrityError:
            known = _known_request(connection, new)
            if known is None:
                raise
            return known
    spec = new.spec
    connection.execute(
        sa.insert(experiments),
        {
            "experiment_id": new.experiment_id,
            "project": spec.project,
            "name": spec.name,
            "description": spec.description,
            "tags_json": json_text(list(spec.tags)),
            "metadata_json": json_text(dict(spec.metadata)),
            "spec_json": json_text(spec_to_json(spec, inputs=False)),
            "created_us": now_us,
        },
    )
    for number, start in enumerate(range(0, len(spec.inputs), INPUTS_PER_CHUNK)):
        rows = [row_to_json(row) for row in spec.inputs[start : start + INPUTS_PER_CHUNK]]
        chunk = {"experiment_id": new.experiment_id, "chunk": number, "rows_json": json_text(rows)}
        connection.execute(sa.insert(inputs), chunk)
    connection.execute(
        sa.insert(progress),
        {
            "experiment_id": new.experiment_id,
            "state": ExperimentState.PENDING.value,
            "total": shape(spec).total,
            "max_concurrency": spec.limits.max_concurrency,
            "budget_nanousd": spec.limits.budget_nanousd,
            "budget_tokens": spec.limits.budget_tokens,
            "unit_nanousd": new.unit_nanousd,
            "unit_tokens": new.unit_tokens,
        },
    )
    connection.execute(sa.insert(relay), {"experiment_id": new.experiment_id, "published_seq": 0})
    ledger = locked_ledger(connection, new.experiment_id)
    number_events(connection, ledger, [NewEvent("experiment.created", None, experiment_facts(ledger))], now_us)
    return new.experiment_id


def _known_request(connection: sa.Connection, new: NewExperiment) -> str | None:
    query = sa.select(requests.c.body_sha256, requests.c.experiment_id).where(requests.c.request_id == new.request_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if row.body_sha256 != new.body_sha256:
        raise RequestIdReused(
            f"request_id {new.request_id!r} was used before for another experiment; use a new one",
            request_id=new.request_id,
        )
    return str(row.experiment_id)


def forget_old_requests(connection: sa.Connection, now_us: int) -> None:
    connection.execute(sa.delete(requests).where(requests.c.created_us < now_us - REQUEST_KEPT_US))


def get(connection: sa.Connection, experiment_id: str, now_us: int) -> Experiment:
    row = connection.execute(EXPERIMENT.where(experiments.c.experiment_id == experiment_id)).one_or_none()
    if row is None:
        raise _not_found(experiment_id)
    return experiment_of(row, now_us)


def page(
    connection: sa.Connection, where: ExperimentFilter, limit: int, after: tuple[int, str] | None, now_us: int
) -> tuple[list[Experiment], tuple[int, str] | None]:
    """Up to `limit` experiments, newest first, and where the next page begins (None at the end). Keyset by creation
    time."""
    query = EXPERIMENT.order_by(experiments.c.created_us.desc(), experiments.c.experiment_id.desc()).limit(limit + 1)
    if where.project:
        query = query.where(experiments.c.project == where.project)
    if where.states:
        query = query.where(progress.c.state.in_([state.value for state in where.states]))
    if where.experiment_id_prefix:
        query = query.where(experiments.c.experiment_id.startswith(where.experiment_id_prefix, autoescape=True))
    for tag in where.tags:
        query = query.where(experiments.c.tags_json.contains(json_text(tag), autoescape=True))
    for key, value in where.metadata.items():
        pair = f"{json_text(key)}:{json_text(value)}"
        query = query.where(experiments.c.metadata_json.contains(pair, autoescape=True))
    if after is not None:
        created_us, experiment_id = after
        query = query.where(
            sa.or_(
                experiments.c.created_us < created_us,
                sa.and_(experiments.c.created_us == created_us, experiments.c.experiment_id < experiment_id),
            )
        )
    rows = connection.execute(query).all()
    found = [experiment_of(row, now_us) for row in rows[:limit]]
    # LIKE is only the sieve: it ignores case on SQLite.
    exact = [
        e
        for e in found
        if set(where.tags) <= set(e.tags)
        and all(e.metadata.get(key) == value for key, value in where.metadata.items())
        and e.experiment_id.startswith(where.experiment_id_prefix)
    ]
    more = len(rows) > limit
    return exact, (rows[limit - 1].created_us, rows[limit - 1].experiment_id) if more else None


def spec_of(connection: sa.Connection, experiment_id: str) -> tuple[ExperimentSpec, int]:
    """The spec without its inputs, and the number of runs."""
    query = sa.select(experiments.c.spec_json, progress.c.total).join(
        progress, progress.c.experiment_id == experiments.c.experiment_id
    )
    row = connection.execute(query.where(experiments.c.experiment_id == experiment_id)).one_or_none()
    if row is None:
        raise _not_found(experiment_id)
    return spec_from_json(json_value(row.spec_json)), row.total


def input_chunk(connection: sa.Connection, experiment_id: str, chunk: int) -> list[Any]:
    """The rows of a chunk as InputRow."""
    text = connection.execute(
        sa.select(inputs.c.rows_json).where(inputs.c.experiment_id == experiment_id, inputs.c.chunk == chunk)
    ).scalar()
    if text is None:
        raise _not_found(experiment_id)
    return [row_from_json(row) for row in json_value(text)]


def active(connection: sa.Connection) -> list[Active]:
    columns = ("experiment_id", "state", "running", "total", "next_index", "returned", "max_concurrency")
    query = sa.select(*(progress.c[name] for name in columns)).where(progress.c.state.in_(ACTIVE))
    return [
        Active(
            r.experiment_id, ExperimentState(r.state), r.running, r.total - r.next_index + r.returned, r.max_concurrency
        )
        for r in connection.execute(query)
    ]


def cancel(connection: sa.Connection, experiment_id: str, now_us: int) -> None:
    """Marks an experiment CANCELLING, or CANCELLED where nothing runs. Does nothing to one that ended."""
    ledger = locked_ledger(connection, experiment_id)
    if ledger.ended or ledger.state == ExperimentState.CANCELLING.value:
        return
    ledger.state, ledger.reason = ExperimentState.CANCELLING.value, "USER"
    decided = Turn(ledger, "", now_us)
    decided.settle(lambda: pending_rows(connection, experiment_id))
    write(connection, decided, Failpoints())


def cancel_waiting_run(connection: sa.Connection, experiment_id: str, run_index: int, now_us: int) -> RunState | None:
    """Cancels a run that came back and waits. Returns the state it had, None where it has no row."""
    ledger = locked_ledger(connection, experiment_id)
    query = sa.select(*RUN_COLUMNS).where(runs.c.experiment_id == experiment_id, runs.c.run_index == run_index)
    stored = connection.execute(query).one_or_none()
    if stored is None:
        return None
    state = RunState(stored.state)
    if state is RunState.PENDING:
        row = run_row(stored)
        row.state, row.ended_us, row.not_before_us = RunState.CANCELLED.value, now_us, 0
        row.reserved_nanousd = row.reserved_tokens = 0
        ledger.returned -= 1
        ledger.cancelled += 1
        decided = Turn(ledger, "", now_us, touched={run_index: row})
        decided.events.append(NewEvent("run.cancelled", run_index, {}))
        decided.settle(lambda: pending_rows(connection, experiment_id, run_index))
        write(connection, decided, Failpoints())
    return state


def delete(connection: sa.Connection, experiment_id: str) -> None:
    """Deletes an experiment that has ended, with everything of it."""
    ledger = locked_ledger(connection, experiment_id)
    if not ledger.ended:
        cancelling = ledger.state == ExperimentState.CANCELLING.value
        advice = "its running calls are being stopped, try again" if cancelling else "cancel it before deleting it"
        raise ExperimentNotEnded(
            f"experiment {experiment_id!r} is {ledger.state}; {advice}", experiment_id=experiment_id
        )
    for table in (scores, stage_results, runs, events, inputs, relay, requests, experiments, progress):
        connection.execute(sa.delete(table).where(table.c.experiment_id == experiment_id))


def fail(connection: sa.Connection, experiment_id: str, reason: str, now_us: int) -> None:
    """Ends an experiment that cannot be run. Its running runs are cancelled."""
    ledger = locked_ledger(connection, experiment_id)
    if ledger.ended:
        return
    query = sa.select(*RUN_COLUMNS).where(
        runs.c.experiment_id == experiment_id, runs.c.state.in_([RunState.PENDING.value, RunState.RUNNING.value])
    )
    decided = Turn(ledger, "", now_us)
    decided.fail([run_row(row) for row in connection.execute(query)], reason)
    write(connection, decided, Failpoints())


def _not_found(experiment_id: str) -> ExperimentNotFound:
    return ExperimentNotFound(f"there is no experiment {experiment_id!r}; see `list`", experiment_id=experiment_id)
