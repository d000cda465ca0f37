"""The turn's SQL: lock and read, let `promptlooper.runner.turn` decide, write in bulk, number the events, commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import sqlalchemy as sa

from promptlooper.errors import ExperimentNotFound
from promptlooper.failpoints import Failpoints
from promptlooper.jsonvalue import json_text
from promptlooper.run import RunState, Score, StageResult
from promptlooper.runner.store.models import events, progress, runners, runs, scores, stage_results
from promptlooper.runner.store.rows import stage_result_of, stage_result_row
from promptlooper.runner.turn import Claim, Ledger, NewEvent, Outcome, RunRow, Turn

LEDGER_COLUMNS = [progress.c[f.name] for f in fields(Ledger)]
RUN_FIELDS = (
    "run_index",
    "variant_index",
    "state",
    "owner",
    "lease_epoch",
    "next_stage",
    "reserved_nanousd",
    "reserved_tokens",
    "not_before_us",
)
RUN_COLUMNS = [runs.c[name] for name in (*RUN_FIELDS, "paid_calls")]
ADDED = (
    "tokens_in",
    "tokens_out",
    "tokens_reasoning",
    "tokens_cached_in",
    "cost_nanousd",
    "cost_unknown_calls",
    "cost_saved_nanousd",
    "latency_ms",
    "attempts",
    "paid_calls",
)
SET = ("state", "owner", "lease_epoch", "next_stage", "not_before_us", "reserved_nanousd", "reserved_tokens", "score")
SET_LAST = ("passed", "ended_us")

UPDATE_RUN = (
    sa.update(runs)
    .where(runs.c.experiment_id == sa.bindparam("x"), runs.c.run_index == sa.bindparam("i"))
    .values(
        **{name: sa.bindparam(f"b_{name}") for name in (*SET, *SET_LAST)},
        error_json=sa.bindparam("b_error_json"),
        **{name: runs.c[name] + sa.bindparam(f"b_{name}") for name in ADDED},
    )
)
UPDATE_PROGRESS = (
    sa.update(progress)
    .where(progress.c.experiment_id == sa.bindparam("x"))
    .values({f.name: sa.bindparam(f"b_{f.name}") for f in fields(Ledger) if f.name != "experiment_id"})
)


@dataclass(frozen=True, slots=True)
class TurnRequest:
    experiment_id: str
    runner_id: str
    outcomes: Sequence[Outcome]
    slots: int  # how many runs this Runner could start now
    variant_ids: Sequence[str]
    repeats: int


@dataclass(frozen=True, slots=True)
class TurnResult:
    ledger: Ledger
    alive: bool  # False: this Runner's lease is gone, nothing was claimed, register anew
    claims: Sequence[Claim]
    continuing: Sequence[Claim]
    refused: Sequence[int]
    next_due_us: int | None  # when the next run that came back may start; None where none may before other news


def locked_ledger(connection: sa.Connection, experiment_id: str) -> Ledger:
    """The progress row, locked until the transaction ends. It is the lock of everything of the experiment."""
    query = sa.select(*LEDGER_COLUMNS).where(progress.c.experiment_id == experiment_id).with_for_update(key_share=True)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise ExperimentNotFound(f"there is no experiment {experiment_id!r}", experiment_id=experiment_id)
    return Ledger(*row)


def turn(connection: sa.Connection, request: TurnRequest, now_us: int, failpoints: Failpoints) -> TurnResult:
    """One turn. Raises ExperimentNotFound where the experiment was deleted."""
    ledger = locked_ledger(connection, request.experiment_id)
    alive = runner_is_alive(connection, request.runner_id)
    decided = Turn(ledger, request.runner_id, now_us)
    decided.take(request.outcomes, _rows(connection, request.experiment_id, {o.run_index for o in request.outcomes}))
    next_due_us = None
    if alive:
        room = decided.room(request.slots)
        if room and ledger.returned:
            ready, next_due_us = _ready(connection, decided, room, now_us)
            decided.claim_returned(ready)
        if room > len(decided.claims):
            decided.claim_new(room - len(decided.claims), request.variant_ids, request.repeats)
    decided.settle(lambda: _waiting(connection, decided))
    write(connection, decided, failpoints)
    claims = with_results(connection, request.experiment_id, decided.claims)
    given_back = [row.not_before_us or now_us for row in decided.touched.values() if row.state == "PENDING"]
    due = min([*given_back, *([] if next_due_us is None else [next_due_us])], default=None)
    return TurnResult(ledger, alive, claims, decided.continuing, decided.refused, due if ledger.admitted(1) else None)


def runner_is_alive(connection: sa.Connection, runner_id: str) -> bool:
    query = sa.select(runners.c.dead).where(runners.c.runner_id == runner_id)
    return connection.execute(query).scalar() is False


def run_row(row: sa.Row[Any]) -> RunRow:
    """Of a row with RUN_COLUMNS."""
    values = row._mapping
    return RunRow(**{name: values[name] for name in RUN_FIELDS}, cached_before=values["paid_calls"] == 0)


def _rows(connection: sa.Connection, experiment_id: str, indexes: set[int]) -> dict[int, RunRow]:
    if not indexes:
        return {}
    query = sa.select(*RUN_COLUMNS).where(runs.c.experiment_id == experiment_id, runs.c.run_index.in_(sorted(indexes)))
    return {row[0]: run_row(row) for row in connection.execute(query)}


def _pending(decided: Turn) -> sa.Select[Any]:
    """Rows that came back before this turn; the partial index serves the literal."""
    return sa.select(*RUN_COLUMNS).where(
        runs.c.experiment_id == decided.ledger.experiment_id,
        runs.c.state == sa.literal_column("'PENDING'"),
        runs.c.run_index.not_in([i for i, row in decided.touched.items() if row.state != RunState.PENDING.value]),
    )


def _ready(connection: sa.Connection, decided: Turn, room: int, now_us: int) -> tuple[list[RunRow], int | None]:
    """Returned rows that may start now, and when the next of the others may."""
    due = sa.or_(runs.c.not_before_us.is_(None), runs.c.not_before_us <= now_us)
    query = _pending(decided).where(due).order_by(runs.c.run_index).limit(room)
    ready = [run_row(row) for row in connection.execute(query)]
    later = sa.select(sa.func.min(runs.c.not_before_us)).where(
        runs.c.experiment_id == decided.ledger.experiment_id,
        runs.c.state == sa.literal_column("'PENDING'"),
        runs.c.not_before_us > now_us,
    )
    return ready, connection.execute(later).scalar()


def _waiting(connection: sa.Connection, decided: Turn) -> list[RunRow]:
    stored = [run_row(row) for row in connection.execute(_pending(decided))]
    here = [row for row in decided.touched.values() if row.state == RunState.PENDING.value]
    indexes = {row.run_index for row in here}
    return [*here, *(row for row in stored if row.run_index not in indexes)]


def with_results(connection: sa.Connection, experiment_id: str, claims: Sequence[Claim]) -> list[Claim]:
    """Gives claims in mid-run the results of their earlier stages."""
    begun = [claim.run_index for claim in claims if claim.next_stage]
    if not begun:
        return list(claims)
    query = (
        sa.select(stage_results)
        .where(stage_results.c.experiment_id == experiment_id, stage_results.c.run_index.in_(begun))
        .order_by(stage_results.c.run_index, stage_results.c.stage_index)
    )
    results: dict[int, list[StageResult]] = {}
    for row in connection.execute(query):
        results.setdefault(row.run_index, []).append(stage_result_of(row))
    return [replace(claim, results=tuple(results.get(claim.run_index, ()))) for claim in claims]


def write(connection: sa.Connection, decided: Turn, failpoints: Failpoints) -> None:
    """Writes what was decided, events last but one and the progress row last."""
    experiment_id, ledger = decided.ledger.experiment_id, decided.ledger
    if decided.created:
        connection.execute(sa.insert(runs), [_new_run(decided, row) for row in decided.created])
    if decided.touched:
        connection.execute(UPDATE_RUN, [_run_update(experiment_id, row) for row in decided.touched.values()])
    if decided.stage_results:
        rows = [stage_result_row(experiment_id, row.run_index, row.lease_epoch, r) for row, r in decided.stage_results]
        connection.execute(sa.insert(stage_results), rows)
    if decided.scores:
        rows = [_score_row(experiment_id, row, n, s) for row, all_ in decided.scores for n, s in enumerate(all_)]
        connection.execute(sa.insert(scores), rows)
    number_events(connection, ledger, decided.events, decided.now_us)
    failpoints.hit("turn_before_commit")


def number_events(connection: sa.Connection, ledger: Ledger, new: Sequence[NewEvent], now_us: int) -> None:
    """Gives events their numbers under the lock that is held to the commit, so that their order is commit order, and
    writes the progress row."""
    rows: list[Mapping[str, Any]] = []
    for event in new:
        ledger.event_seq += 1
        rows.append(
            {
                "experiment_id": ledger.experiment_id,
                "event_seq": ledger.event_seq,
                "run_index": event.run_index,
                "kind": event.kind,
                "generation": ledger.generation,
                "time_us": now_us,
                "detail_json": json_text(event.detail),
            }
        )
    if rows:
        connection.execute(sa.insert(events), rows)
    values = {f"b_{name}": value for name, value in ledger.as_row().items() if name != "experiment_id"}
    connection.execute(UPDATE_PROGRESS, {"x": ledger.experiment_id, **values})


def _new_run(decided: Turn, row: RunRow) -> dict[str, Any]:
    return {
        "experiment_id": decided.ledger.experiment_id,
        "run_index": row.run_index,
        "state": row.state,
        "generation": decided.ledger.generation,
        "variant_index": row.variant_index,
        "owner": row.owner,
        "lease_epoch": row.lease_epoch,
        "reserved_nanousd": row.reserved_nanousd,
        "reserved_tokens": row.reserved_tokens,
        "started_us": decided.now_us,
    }


def _run_update(experiment_id: str, row: RunRow) -> dict[str, Any]:
    values: dict[str, Any] = {f"b_{name}": getattr(row, name) for name in (*SET, *SET_LAST, *ADDED)}
    values["b_error_json"] = None if row.error is None else json_text(asdict(row.error))
    values["x"], values["i"] = experiment_id, row.run_index
    return values


def _score_row(experiment_id: str, row: RunRow, index: int, score: Score) -> dict[str, Any]:
    return {
        "experiment_id": experiment_id,
        "run_index": row.run_index,
        "score_index": index,
        "variant_index": row.variant_index,
        "name": score.name,
        "type": score.type,
        "value": score.value,
        "passed": score.passed,
        "weight": score.weight,
        "explanation": score.explanation,
        "error": score.error,
        "metadata_json": json_text(score.metadata),
    }
