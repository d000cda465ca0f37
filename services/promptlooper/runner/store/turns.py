"""The turn's SQL: lock and read, let `promptlooper.runner.turn` decide, write in bulk, number the events, commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from promptlooper.errors import ExperimentNotFound
from promptlooper.failpoints import Failpoints
from promptlooper.jsonvalue import json_text
from promptlooper.run import RunState, Score, StageResult
from promptlooper.runner.claims import Claim
from promptlooper.runner.event_facts import NewEvent
from promptlooper.runner.ledger import Ledger, RunRow
from promptlooper.runner.outcomes import Outcome
from promptlooper.runner.store import questions
from promptlooper.runner.store.bulk import BulkInsert, BulkUpdate
from promptlooper.runner.store.models import CALL_ORDER, events, progress, runners, runs, scores, stage_results
from promptlooper.runner.store.rows import STAGE_RESULT_COLUMNS, stage_result_of, stage_result_row, storable
from promptlooper.runner.turn import Turn

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
    "deadline_us",
    "run_deadline_us",
    "cancel_requested",
    "in_batch",
    "generation",
)
RUN_COLUMNS = [runs.c[name] for name in (*RUN_FIELDS, "paid_calls", "attempts")]
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
ASSIGNED = (
    "state",
    "generation",
    "owner",
    "lease_epoch",
    "next_stage",
    "not_before_us",
    "deadline_us",
    "run_deadline_us",
    "in_batch",
    "reserved_nanousd",
    "reserved_tokens",
    "score",
    "passed",
    "ended_us",
)
INSERT_RUNS = BulkInsert(
    runs,
    (
        "experiment_id",
        "run_index",
        "state",
        "generation",
        "variant_index",
        "owner",
        "lease_epoch",
        "next_stage",
        "run_deadline_us",
        "reserved_nanousd",
        "reserved_tokens",
        *ADDED,
        "started_us",
    ),
)
UPDATE_RUNS = BulkUpdate(runs, ("error_json", *ASSIGNED), ADDED)
INSERT_STAGE_RESULTS = BulkInsert(stage_results, STAGE_RESULT_COLUMNS)
INSERT_SCORES = BulkInsert(
    scores,
    (
        "experiment_id",
        "run_index",
        "score_index",
        "variant_index",
        "name",
        "type",
        "value",
        "passed",
        "weight",
        "explanation",
        "error",
        "metadata_json",
    ),
)
INSERT_EVENTS = BulkInsert(
    events, ("experiment_id", "event_seq", "run_index", "kind", "generation", "time_us", "detail_json")
)
_assigned, _added = attrgetter(*ASSIGNED), attrgetter(*ADDED)
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
    run_timeout_us: int | None = None
    going_on: bool = True  # False: runs go back after their stage
    batch: bool = False  # its questions are asked by batches


@dataclass(frozen=True, slots=True)
class TurnResult:
    ledger: Ledger
    alive: bool  # False: this Runner's lease is gone, nothing was claimed, register anew
    claims: Sequence[Claim]
    continuing: Sequence[Claim]
    refused: Sequence[int]
    stored: bool  # answers were stored
    next_due_us: int | None  # when another run that came back may start; None where none may before other news
    kinds: Mapping[str, int] = field(default_factory=dict)  # events that were made, by kind


MOST_PARKED = 4  # times max_concurrency: else a rate limit has all runs of an experiment started and parked
LIVING = sa.select(runners.c.runner_id).where(runners.c.runner_id == sa.bindparam("r"), runners.c.dead.is_(False))
IS_PENDING = runs.c.state == sa.literal_column("'PENDING'")  # the partial index serves the literal
LOCK = (
    sa.select(*LEDGER_COLUMNS, LIVING.scalar_subquery())
    .where(progress.c.experiment_id == sa.bindparam("x"))
    .with_for_update(of=progress, key_share=True)
)


def locked_ledger(connection: sa.Connection, experiment_id: str) -> Ledger:
    """The progress row, locked until the transaction ends. It is the lock of everything of the experiment."""
    return _locked(connection, experiment_id, "")[0]


def _locked(connection: sa.Connection, experiment_id: str, runner_id: str) -> tuple[Ledger, bool]:
    """Also says whether the Runner is alive."""
    row = connection.execute(LOCK, {"x": experiment_id, "r": runner_id}).one_or_none()
    if row is None:
        raise ExperimentNotFound(f"there is no experiment {experiment_id!r}", experiment_id=experiment_id)
    *columns, living = row
    return Ledger(*columns), living is not None


def turn(connection: sa.Connection, request: TurnRequest, now_us: int, failpoints: Failpoints) -> TurnResult:
    """One turn. Raises ExperimentNotFound where the experiment was deleted."""
    ledger, alive = _locked(connection, request.experiment_id, request.runner_id)
    decided = Turn(ledger, request.runner_id, now_us, request.run_timeout_us, alive, request.going_on)
    decided.take(request.outcomes, _rows(connection, request.experiment_id, {o.run_index for o in request.outcomes}))
    next_due_us = None
    if alive and (room := decided.room(request.slots)):
        if ledger.returned:
            ready, next_due_us = _ready(connection, decided, room, now_us)
            decided.claim_returned(ready)
        parked = ledger.returned - ledger.in_batch
        new = min(room - len(decided.claims), MOST_PARKED * ledger.max_concurrency - parked)
        decided.claim_new(max(0, new), request.variant_ids, request.repeats)
    ended = decided.settle(lambda: _waiting(connection, decided), parked=next_due_us is not None)
    if request.batch:
        questions.keep(connection, decided)
    write(connection, decided, failpoints)
    continuing: Sequence[Claim] = decided.continuing
    if request.batch:
        continuing = questions.with_items(connection, request.experiment_id, continuing)
    if decided.claims:
        failpoints.hit("claim_before_commit")
    if decided.stage_results:
        failpoints.hit("checkpoint_before_commit")
    if ended:
        failpoints.hit("terminal_before_commit")
    claims = with_results(connection, request.experiment_id, decided.claims)
    if request.batch:
        claims = questions.with_items(connection, request.experiment_id, claims)
    due = [row.not_before_us or now_us for row in decided.given_back]
    if next_due_us is not None:
        due.append(next_due_us)
    next_us, stored = min(due, default=None), bool(decided.stage_results)
    kinds = Counter(event.kind for event in decided.events)
    return TurnResult(ledger, alive, claims, continuing, decided.refused, stored, next_us, kinds)


SELECT_RUNS = sa.select(*RUN_COLUMNS).where(
    runs.c.experiment_id == sa.bindparam("x"), runs.c.run_index.in_(sa.bindparam("indexes", expanding=True))
)


def run_row(row: sa.Row[Any]) -> RunRow:
    """Of a row with RUN_COLUMNS."""
    values = row._mapping
    called = bool(values["paid_calls"] or values["attempts"])
    return RunRow(**{name: values[name] for name in RUN_FIELDS}, cached_before=not called)


def _rows(connection: sa.Connection, experiment_id: str, indexes: set[int]) -> dict[int, RunRow]:
    if not indexes:
        return {}
    found = connection.execute(SELECT_RUNS, {"x": experiment_id, "indexes": sorted(indexes)})
    return {row[0]: run_row(row) for row in found}


def _pending(decided: Turn) -> sa.Select[Any]:
    """Rows that came back before this turn."""
    return sa.select(*RUN_COLUMNS).where(
        runs.c.experiment_id == decided.ledger.experiment_id,
        IS_PENDING,
        runs.c.run_index.not_in([i for i, row in decided.touched.items() if row.state != RunState.PENDING.value]),
    )


def _ready(connection: sa.Connection, decided: Turn, room: int, now_us: int) -> tuple[list[RunRow], int | None]:
    """Returned rows that may start now, and when the next of the others may."""
    bounded = decided.ledger.budget_nanousd is not None or decided.ledger.budget_tokens is not None
    query = (
        _pending(decided)
        .where(runs.c.not_before_us <= now_us)
        # What needs least comes first. Without a budget all need the same, and the index has this order.
        .order_by(*((runs.c.reserved_nanousd, runs.c.reserved_tokens) if bounded else (runs.c.not_before_us,)))
        .limit(room)
    )
    ready = [run_row(row) for row in connection.execute(query)]
    later = sa.select(sa.func.min(runs.c.not_before_us)).where(
        runs.c.experiment_id == decided.ledger.experiment_id, IS_PENDING, runs.c.not_before_us > now_us
    )
    return ready, connection.execute(later).scalar()


def _waiting(connection: sa.Connection, decided: Turn) -> list[RunRow]:
    stored = [run_row(row) for row in connection.execute(_pending(decided))]
    here = {row.run_index: row for row in decided.given_back}
    return [*here.values(), *(row for row in stored if row.run_index not in here)]


def pending_rows(connection: sa.Connection, experiment_id: str, but: int = -1) -> list[RunRow]:
    """Runs that came back and wait, but for one."""
    query = sa.select(*RUN_COLUMNS).where(runs.c.experiment_id == experiment_id, IS_PENDING, runs.c.run_index != but)
    return [run_row(row) for row in connection.execute(query)]


def with_results(connection: sa.Connection, experiment_id: str, claims: Sequence[Claim]) -> list[Claim]:
    """Gives claims in mid-run the results of their earlier stages."""
    begun = [claim.run_index for claim in claims if claim.next_stage]
    if not begun:
        return list(claims)
    query = (
        sa.select(stage_results)
        .where(stage_results.c.experiment_id == experiment_id, stage_results.c.run_index.in_(begun))
        .order_by(*CALL_ORDER)
    )
    results: dict[int, list[StageResult]] = {}
    for row in connection.execute(query):
        results.setdefault(row.run_index, []).append(stage_result_of(row))
    return [replace(c, results=tuple(results.get(c.run_index, ()))[: c.next_stage]) for c in claims]


def write(connection: sa.Connection, decided: Turn, failpoints: Failpoints) -> None:
    """Writes what was decided, events last but one and the progress row last; nothing where nothing changed."""
    if not decided.changed:
        return
    experiment_id, ledger = decided.ledger.experiment_id, decided.ledger
    INSERT_RUNS(connection, [_new_run(decided, row) for row in decided.created])
    UPDATE_RUNS(connection, [_run_update(experiment_id, row) for row in decided.touched.values()])
    results = [stage_result_row(experiment_id, row.run_index, row.lease_epoch, r) for row, r in decided.stage_results]
    INSERT_STAGE_RESULTS(connection, results)
    judged = [_score_row(experiment_id, row, n, s) for row, all_ in decided.scores for n, s in enumerate(all_)]
    INSERT_SCORES(connection, judged)
    number_events(connection, ledger, decided.events, decided.now_us)
    failpoints.hit("turn_before_commit")


def number_events(connection: sa.Connection, ledger: Ledger, new: Sequence[NewEvent], now_us: int) -> None:
    """Gives events their numbers under the lock that is held to the commit, so that their order is commit order, and
    writes the progress row."""
    rows: list[tuple[Any, ...]] = []
    experiment_id, generation, seq = ledger.experiment_id, ledger.generation, ledger.event_seq
    for seq, event in enumerate(new, ledger.event_seq + 1):
        detail = json_text(event.detail)
        rows.append((experiment_id, seq, event.run_index, event.kind, generation, now_us, detail))
    ledger.event_seq = seq
    INSERT_EVENTS(connection, rows)
    values = {f"b_{name}": value for name, value in ledger.as_row().items() if name != "experiment_id"}
    connection.execute(UPDATE_PROGRESS, {"x": ledger.experiment_id, **values})


def _new_run(decided: Turn, row: RunRow) -> tuple[Any, ...]:
    return (
        decided.ledger.experiment_id,
        row.run_index,
        row.state,
        decided.ledger.generation,
        row.variant_index,
        row.owner,
        row.lease_epoch,
        row.next_stage,
        row.run_deadline_us,
        row.reserved_nanousd,
        row.reserved_tokens,
        *_added(row),
        decided.now_us,
    )


def _run_update(experiment_id: str, row: RunRow) -> tuple[Any, ...]:
    error = None if row.error is None else json_text(asdict(row.error))
    return (error, *_assigned(row), *_added(row), experiment_id, row.run_index)


def _score_row(experiment_id: str, row: RunRow, index: int, score: Score) -> tuple[Any, ...]:
    return (
        experiment_id,
        row.run_index,
        index,
        row.variant_index,
        score.name,
        score.type,
        score.value,
        score.passed,
        score.weight,
        storable(score.explanation),
        None if score.error is None else storable(score.error),
        json_text(score.metadata),
    )
