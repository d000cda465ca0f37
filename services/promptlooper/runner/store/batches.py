"""Batches and what is in them: each function is one short transaction's work, under the experiment's lock where it
writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from promptlooper.clock import IdMaker
from promptlooper.errors import ExperimentNotFound
from promptlooper.experiment import ExperimentState
from promptlooper.runner.store.models import batch_items, batches, progress, runners, runs
from promptlooper.runner.store.questions import ANSWERED, DIRECT, SUBMITTED, WAITING
from promptlooper.runner.store.turns import IS_PENDING, locked_ledger

SUBMITTING = "SUBMITTING"  # of a batch that may be at its provider or not
EXPERIMENT, TIME = "EXPERIMENT", "TIME"  # why a batch is cancelled: its experiment has ended, or it took too long
GOING = [ExperimentState.PENDING.value, ExperimentState.RUNNING.value]
AT_ONCE = 1_000  # rows of one statement
COLUMNS = ("batch_id", "experiment_id", "model", "state", "handle", "stop_reason", "created_us", "deadline_us")
IS_WAITING = batch_items.c.state == sa.literal_column("'WAITING'")  # the partial index serves the literal
WITH_BATCHES = sa.union(
    sa.select(batch_items.c.experiment_id)
    .join(progress, progress.c.experiment_id == batch_items.c.experiment_id)
    .where(IS_WAITING, progress.c.state.in_(GOING)),
    sa.select(batches.c.experiment_id),
)
SELECT_OPEN = (
    sa.select(*(batches.c[name] for name in COLUMNS))
    .where(batches.c.experiment_id == sa.bindparam("x"))
    .order_by(batches.c.created_us, batches.c.batch_id)
)
IS_OVERDUE = sa.and_(
    runs.c.experiment_id == sa.bindparam("x"),
    IS_PENDING,
    runs.c.not_before_us.between(1, sa.bindparam("now_us")),
    runs.c.in_batch,
)
SELECT_STATE = sa.select(
    progress.c.state,
    (progress.c.total - progress.c.next_index + progress.c.running + progress.c.returned - progress.c.in_batch).label(
        "coming"
    ),
    sa.exists(sa.select(runs.c.run_index).where(IS_OVERDUE)).label("overdue"),
).where(progress.c.experiment_id == sa.bindparam("x"))
SELECT_KEEPER = (
    sa.select(progress.c.batch_keeper)
    .join(runners, runners.c.runner_id == progress.c.batch_keeper)
    .where(progress.c.experiment_id == sa.bindparam("x"), runners.c.dead.is_(False))
)
OF_ITS_RUN = sa.and_(runs.c.experiment_id == batch_items.c.experiment_id, runs.c.run_index == batch_items.c.run_index)
WAITING_ITEMS = (  # questions of runs that still wait for them
    sa.select(batch_items)
    .join(runs, OF_ITS_RUN)
    .where(batch_items.c.experiment_id == sa.bindparam("x"), IS_WAITING, runs.c.in_batch)
)
SELECT_WAITING = WAITING_ITEMS.with_only_columns(
    sa.func.count(), sa.func.sum(batch_items.c.size), sa.func.max(batch_items.c.added_us)
)


@dataclass(frozen=True, slots=True)
class Open:
    """A batch whose results are not stored yet."""

    batch_id: str
    experiment_id: str
    model: str
    state: str  # SUBMITTING or SUBMITTED
    handle: str
    stop_reason: str
    created_us: int
    deadline_us: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How an experiment's batches stand. `state` is None where it was deleted."""

    state: ExperimentState | None
    keeper: str  # "" where no living Runner keeps them
    coming: bool  # runs may still ask something
    open: tuple[Open, ...]
    waiting: int
    size_waiting: int
    newest_us: int
    overdue: bool  # runs have waited for as long as they may


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a batch may have at most."""

    items: int
    bytes: int


def with_batches(connection: sa.Connection) -> list[str]:
    """Experiments with questions that wait, or with open batches."""
    return list(connection.execute(WITH_BATCHES).scalars())


def standing(connection: sa.Connection, experiment_id: str, now_us: int) -> Standing:
    found = tuple(Open(*row) for row in connection.execute(SELECT_OPEN, {"x": experiment_id}))
    row = connection.execute(SELECT_STATE, {"x": experiment_id, "now_us": now_us}).one_or_none()
    if row is None:
        return Standing(None, "", False, found, 0, 0, 0, False)
    count, size, newest_us = connection.execute(SELECT_WAITING, {"x": experiment_id}).one()
    state, keeper = ExperimentState(row.state), _keeper(connection, experiment_id)
    return Standing(state, keeper, row.coming > 0, found, count, int(size or 0), newest_us or 0, row.overdue)


def _keeper(connection: sa.Connection, experiment_id: str) -> str:
    return connection.execute(SELECT_KEEPER, {"x": experiment_id}).scalar() or ""


def take(connection: sa.Connection, experiment_id: str, runner_id: str) -> bool:
    """Makes this Runner the one that keeps the experiment's batches, unless another that lives does."""
    locked_ledger(connection, experiment_id)
    if _keeper(connection, experiment_id) not in ("", runner_id):
        return False
    _set_keeper(connection, experiment_id, runner_id)
    return True


def _set_keeper(connection: sa.Connection, experiment_id: str, runner_id: str | None) -> None:
    of_it = progress.c.experiment_id == experiment_id
    connection.execute(sa.update(progress).where(of_it).values(batch_keeper=runner_id))


def form(
    connection: sa.Connection,
    experiment_id: str,
    runner_id: str,
    new_id: IdMaker,
    sizes: Sizes,
    now_us: int,
    over_us: int,
) -> list[str]:
    """Makes a batch of what waits for each model, and returns their ids. Equal questions are one item: also what waits
    for the same as a batch that is under way. Nothing where the experiment is paused or ends, or another keeps it."""
    ledger = locked_ledger(connection, experiment_id)
    if ledger.state not in GOING or _keeper(connection, experiment_id) != runner_id:
        return []
    _join(connection, experiment_id)
    formed = []
    waiting = WAITING_ITEMS.params(x=experiment_id)
    for model in connection.execute(waiting.with_only_columns(batch_items.c.model).distinct()).scalars().all():
        rows = connection.execute(
            waiting.with_only_columns(batch_items.c.run_index, batch_items.c.item_id, batch_items.c.size)
            .where(batch_items.c.model == model)
            .order_by(batch_items.c.run_index)
            .limit(2 * sizes.items)
        )
        chosen = _chosen(rows, sizes)
        batch_id = new_id()
        row = (batch_id, experiment_id, model, SUBMITTING, "", "", now_us, now_us + over_us)
        connection.execute(sa.insert(batches), dict(zip(COLUMNS, row, strict=True)))
        _set(connection, experiment_id, chosen, state=SUBMITTED, batch_id=batch_id)
        formed.append(batch_id)
    return formed


def _join(connection: sa.Connection, experiment_id: str) -> None:
    """What waits and was asked by another run already waits for the same, or has its answer."""
    asked = batch_items.alias()
    equal = (
        WAITING_ITEMS.params(x=experiment_id)
        .join(
            asked,
            sa.and_(
                asked.c.experiment_id == batch_items.c.experiment_id,
                asked.c.item_id == batch_items.c.item_id,
                asked.c.state.in_([SUBMITTED, ANSWERED]),
            ),
        )
        .with_only_columns(batch_items.c.run_index, asked.c.state, asked.c.batch_id, asked.c.result)
    )
    for run_index, state, batch_id, result in connection.execute(equal).all():
        values = {"state": state, "batch_id": batch_id, "result": result, "shared": state == ANSWERED}
        _set(connection, experiment_id, [run_index], **values)
        if state == ANSWERED:
            wake(connection, experiment_id, [run_index])


def _chosen(rows: Iterable[Any], sizes: Sizes) -> list[int]:
    """As many as a batch may have, at least one."""
    found: list[int] = []
    items: set[str] = set()
    size = 0
    for run_index, item_id, length in rows:
        if item_id not in items:
            size += length
            if items and (len(items) >= sizes.items or size > sizes.bytes):
                break
            items.add(item_id)
        found.append(run_index)
    return found


def _set(connection: sa.Connection, experiment_id: str, indexes: Sequence[int], **values: Any) -> None:
    for start in range(0, len(indexes), AT_ONCE):
        these = batch_items.c.run_index.in_(indexes[start : start + AT_ONCE])
        of_it = batch_items.c.experiment_id == experiment_id
        connection.execute(sa.update(batch_items).where(of_it, these).values(values))


def wake(connection: sa.Connection, experiment_id: str, indexes: Sequence[int]) -> None:
    """Lets runs that wait for their batch go on, under the experiment's lock."""
    woken = 0
    for start in range(0, len(indexes), AT_ONCE):
        these = runs.c.run_index.in_(indexes[start : start + AT_ONCE])
        waiting = sa.and_(runs.c.experiment_id == experiment_id, these, runs.c.in_batch, runs.c.not_before_us > 0)
        woken += connection.execute(sa.update(runs).where(waiting).values(not_before_us=0)).rowcount
    of_it = progress.c.experiment_id == experiment_id
    connection.execute(sa.update(progress).where(of_it).values(in_batch=progress.c.in_batch - woken))


def wake_overdue(connection: sa.Connection, experiment_id: str, now_us: int) -> None:
    """Lets runs go on that have waited for as long as they may."""
    locked_ledger(connection, experiment_id)
    late = sa.select(runs.c.run_index).where(IS_OVERDUE)
    wake(connection, experiment_id, list(connection.execute(late, {"x": experiment_id, "now_us": now_us}).scalars()))


def requests_of(connection: sa.Connection, batch_id: str) -> dict[str, str]:
    """The questions of a batch by item."""
    query = sa.select(batch_items.c.item_id, batch_items.c.request).where(
        batch_items.c.batch_id == batch_id, batch_items.c.state == SUBMITTED
    )
    query = query.order_by(batch_items.c.run_index)
    return {row.item_id: row.request for row in connection.execute(query)}


def submitted(connection: sa.Connection, batch: Open, handle: str, refused: Sequence[str]) -> None:
    """The provider has taken a batch, but for what it refused: that is asked directly. Where the experiment was deleted
    meanwhile, the batch can be stopped from now on."""
    with suppress(ExperimentNotFound):
        locked_ledger(connection, batch.experiment_id)
        _resolve(connection, batch, dict.fromkeys(refused, (DIRECT, None)))
    of_it = batches.c.batch_id == batch.batch_id
    connection.execute(sa.update(batches).where(of_it).values(state=SUBMITTED, handle=handle))


def stopping(connection: sa.Connection, batch: Open, reason: str) -> None:
    """Why a batch was cancelled at its provider; what is said first stays."""
    of_it = sa.and_(batches.c.batch_id == batch.batch_id, batches.c.stop_reason == "")
    connection.execute(sa.update(batches).where(of_it).values(stop_reason=reason))


def resolve(connection: sa.Connection, batch: Open, results: Mapping[str, tuple[str, str | None]]) -> None:
    """Stores what has become of items, as (state, result), and lets their runs go on."""
    locked_ledger(connection, batch.experiment_id)
    _resolve(connection, batch, results)


def _resolve(connection: sa.Connection, batch: Open, results: Mapping[str, tuple[str, str | None]]) -> None:
    if not results:
        return
    in_batch = sa.and_(batch_items.c.batch_id == batch.batch_id, batch_items.c.state == SUBMITTED)
    query = sa.select(batch_items.c.run_index, batch_items.c.item_id).where(
        in_batch, batch_items.c.item_id.in_(list(results))
    )
    rows = connection.execute(query.order_by(batch_items.c.run_index)).all()
    paying: set[str] = set()
    for run_index, item_id in rows:
        state, result = results[item_id]
        _set(connection, batch.experiment_id, [run_index], state=state, result=result, shared=item_id in paying)
        paying.add(item_id)
    wake(connection, batch.experiment_id, [run_index for run_index, _ in rows])


def end(connection: sa.Connection, batch: Open) -> int:
    """Forgets a batch that has ended. What it left unanswered, as many as are returned, is asked directly; where it was
    cancelled with its experiment, it waits for another batch, should that be resumed."""
    locked_ledger(connection, batch.experiment_id)
    query = sa.select(batch_items.c.run_index).where(
        batch_items.c.batch_id == batch.batch_id, batch_items.c.state == SUBMITTED
    )
    left = list(connection.execute(query).scalars())
    if batch.stop_reason == EXPERIMENT:
        _set(connection, batch.experiment_id, left, state=WAITING, batch_id=None)
    else:
        _set(connection, batch.experiment_id, left, state=DIRECT)
        wake(connection, batch.experiment_id, left)
    forget(connection, batch)
    if not connection.execute(SELECT_OPEN, {"x": batch.experiment_id}).first():
        _set_keeper(connection, batch.experiment_id, None)
    return len(left)


def wait_again(connection: sa.Connection, batch: Open, since_us: int) -> int:
    """Ends a batch that its provider had no room for. Its questions wait for another one, as many as are returned, but
    for those that have waited since before: they are asked directly."""
    locked_ledger(connection, batch.experiment_id)
    of_it = sa.and_(batch_items.c.batch_id == batch.batch_id, batch_items.c.state == SUBMITTED)
    query = sa.select(batch_items.c.run_index).where(of_it, batch_items.c.added_us >= since_us)
    waiting = list(connection.execute(query).scalars())
    _set(connection, batch.experiment_id, waiting, state=WAITING, batch_id=None)
    end(connection, batch)
    return len(waiting)


def forget(connection: sa.Connection, batch: Open) -> None:
    connection.execute(sa.delete(batches).where(batches.c.batch_id == batch.batch_id))
