"""What the Runner asks of the database besides turns: each function is one short transaction's work on a connection."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from promptlooper.errors import ExperimentNotFound
from promptlooper.experiment import Experiment, ExperimentSpec, ExperimentState, InputRow
from promptlooper.experiments import ExperimentFilter
from promptlooper.failpoints import Failpoints
from promptlooper.jsonvalue import json_text, json_value
from promptlooper.runner.event_facts import NewEvent, experiment_facts
from promptlooper.runner.spec.expand import shape
from promptlooper.runner.spec.normal import row_from_json, row_to_json, spec_from_json, spec_to_json
from promptlooper.runner.store.models import (
    experiments,
    inputs,
    progress,
    relay,
    runners,
)
from promptlooper.runner.store.requests import first_answer
from promptlooper.runner.store.rows import experiment_of
from promptlooper.runner.store.turns import locked_ledger, number_events

INPUTS_PER_CHUNK = 200
EXPERIMENT = sa.select(
    *(c for c in experiments.c if c.name not in ("spec_json", "traceparent")),
    *(c for c in progress.c if c.name != "experiment_id"),
).join(progress, progress.c.experiment_id == experiments.c.experiment_id)
ACTIVE = [state.value for state in ExperimentState if not state.ended]
# Statements that are run many times a second are made once: making one costs more than running it.
SELECT_ACTIVE = sa.select(
    *(progress.c[name] for name in ("experiment_id", "state", "running", "total", "next_index", "returned")),
    progress.c.max_concurrency,
    progress.c.deadline_us,
    progress.c.in_batch,
).where(progress.c.state.in_(ACTIVE))
COUNT_LIVING = sa.select(sa.func.count()).where(runners.c.dead.is_(False))
GET = EXPERIMENT.where(experiments.c.experiment_id == sa.bindparam("x"))


@dataclass(frozen=True, slots=True)
class NewExperiment:
    experiment_id: str
    spec: ExperimentSpec
    body_sha256: str
    request_id: str  # "" for none
    unit_nanousd: int  # what one call reserves of the budgets, to begin with
    unit_tokens: int
    traceparent: str = ""  # of who creates it


@dataclass(frozen=True, slots=True)
class Active:
    """An experiment that has something to do."""

    experiment_id: str
    state: ExperimentState
    running: int
    pending: int
    max_concurrency: int
    deadline_us: int | None  # when its time is over
    in_batch: int = 0  # pending runs that no Runner can go on with: they wait for a batch

    @property
    def room(self) -> int:
        """How many more of its runs could run now, budgets aside, over all Runners."""
        if self.state not in (ExperimentState.PENDING, ExperimentState.RUNNING):
            return 0
        return max(0, min(self.pending - self.in_batch, self.max_concurrency - self.running))

    @property
    def has_work(self) -> bool:
        """Whether a Runner that has nothing of it yet may have something to do."""
        return self.room > 0 or self.state is ExperimentState.CANCELLING

    def is_overdue(self, now_us: int) -> bool:
        running = self.state in (ExperimentState.PENDING, ExperimentState.RUNNING)
        return running and self.deadline_us is not None and self.deadline_us <= now_us


def create(connection: sa.Connection, new: NewExperiment, now_us: int, failpoints: Failpoints) -> str:
    """Stores an experiment with its first event and returns its id, or the id that the request_id got before. Raises
    RequestIdReused where that was for another body. Of concurrent calls with one request_id, one stores."""
    if new.request_id:
        known = first_answer(connection, new.request_id, new.body_sha256, new.experiment_id, now_us)
        if known is not None:
            return known
    failpoints.hit("create_before_insert")
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
            "spec_sha256": new.body_sha256,
            "traceparent": new.traceparent or None,
        },
    )
    for number, start in enumerate(range(0, len(spec.inputs), INPUTS_PER_CHUNK)):
        rows = [row_to_json(row) for row in spec.inputs[start : start + INPUTS_PER_CHUNK]]
        chunk = {"experiment_id": new.experiment_id, "chunk": number, "rows_json": json_text(rows)}
        connection.execute(sa.insert(inputs), chunk)
    timeout = spec.limits.experiment_timeout
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
            "timeout_us": None if timeout is None else int(timeout * 1e6),
        },
    )
    connection.execute(sa.insert(relay), {"experiment_id": new.experiment_id, "published_seq": 0})
    ledger = locked_ledger(connection, new.experiment_id)
    number_events(connection, ledger, [NewEvent("experiment.created", None, experiment_facts(ledger))], now_us)
    failpoints.hit("create_after_insert")
    return new.experiment_id


def get(connection: sa.Connection, experiment_id: str, now_us: int) -> Experiment:
    row = connection.execute(GET, {"x": experiment_id}).one_or_none()
    if row is None:
        raise _not_found(experiment_id)
    return experiment_of(row, now_us)


def check_exists(connection: sa.Connection, experiment_id: str) -> None:
    """Raises ExperimentNotFound where the experiment was deleted. Asked after its rows were read: a deletion takes them
    away by and by, after the progress row."""
    if connection.execute(sa.select(progress.c.total).where(progress.c.experiment_id == experiment_id)).first() is None:
        raise _not_found(experiment_id)


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


def trace_of(connection: sa.Connection, experiment_id: str) -> tuple[str, int]:
    """The traceparent of who created the experiment, "" for none, and the number of runs."""
    query = sa.select(experiments.c.traceparent, progress.c.total).join(
        progress, progress.c.experiment_id == experiments.c.experiment_id
    )
    row = connection.execute(query.where(experiments.c.experiment_id == experiment_id)).one_or_none()
    return ("", 0) if row is None else (row.traceparent or "", row.total)


def input_chunk(connection: sa.Connection, experiment_id: str, chunk: int) -> list[InputRow]:
    text = connection.execute(
        sa.select(inputs.c.rows_json).where(inputs.c.experiment_id == experiment_id, inputs.c.chunk == chunk)
    ).scalar()
    if text is None:
        raise _not_found(experiment_id)
    return [row_from_json(row) for row in json_value(text)]


def input_at(connection: sa.Connection, experiment_id: str, input_index: int) -> InputRow:
    chunk, offset = divmod(input_index, INPUTS_PER_CHUNK)
    return input_chunk(connection, experiment_id, chunk)[offset]


def active(connection: sa.Connection) -> tuple[list[Active], int]:
    """The experiments that have not ended, and how many Runners live."""
    living = connection.execute(COUNT_LIVING).scalar() or 0
    found = [
        Active(
            r.experiment_id,
            ExperimentState(r.state),
            r.running,
            r.total - r.next_index + r.returned,
            r.max_concurrency,
            r.deadline_us,
            r.in_batch,
        )
        for r in connection.execute(SELECT_ACTIVE)
    ]
    return found, living


def _not_found(experiment_id: str) -> ExperimentNotFound:
    return ExperimentNotFound(f"there is no experiment {experiment_id!r}; see `list`", experiment_id=experiment_id)
