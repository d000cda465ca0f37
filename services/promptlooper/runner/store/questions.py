"""Questions that wait for batches: what turns do with them, in the transaction that parks or goes on with their run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from promptlooper.run import RunState
from promptlooper.runner.claims import BatchItem, Claim
from promptlooper.runner.store.models import batch_items
from promptlooper.runner.turn import Turn

WAITING, SUBMITTED, ANSWERED, FAILED, DIRECT = "WAITING", "SUBMITTED", "ANSWERED", "FAILED", "DIRECT"
ITEM_COLUMNS = [batch_items.c[name] for name in ("run_index", "position", "state", "result", "shared")]
OF_RUNS = sa.and_(
    batch_items.c.experiment_id == sa.bindparam("x"),
    batch_items.c.run_index.in_(sa.bindparam("indexes", expanding=True)),
)
SELECT_ITEMS = sa.select(*ITEM_COLUMNS).where(OF_RUNS)
IS_USELESS = sa.or_(batch_items.c.state == FAILED, batch_items.c.state == DIRECT)
# What the run does not ask now; and after a failure what would only fail again.
DELETE_USED = sa.delete(batch_items).where(
    batch_items.c.experiment_id == sa.bindparam("x"),
    batch_items.c.run_index == sa.bindparam("i"),
    sa.or_(
        batch_items.c.position != sa.bindparam("next"),
        sa.and_(sa.bindparam("over", type_=sa.Boolean), IS_USELESS),
    ),
)


def keep(connection: sa.Connection, decided: Turn) -> None:
    """Stores the questions of runs that wait from now on, but for those that are there, and deletes those that their
    runs do not need any more."""
    experiment_id = decided.ledger.experiment_id
    used = [
        {
            "x": experiment_id,
            "i": row.run_index,
            "next": row.next_stage,
            "over": row.state in (RunState.COMPLETED.value, RunState.FAILED.value),
        }
        for row in decided.touched.values()
    ]
    if used:
        connection.execute(DELETE_USED, used)
    asked = {row.run_index: (row, item) for row, item in decided.questions}
    if not asked:
        return
    for row in connection.execute(SELECT_ITEMS, {"x": experiment_id, "indexes": sorted(asked)}):
        run, _ = asked.pop(row.run_index)  # it came back without an answer, and waits on
        if row.state not in (WAITING, SUBMITTED):  # it came while the run was looking
            decided.ledger.wake(run)
    values = [
        {
            "experiment_id": experiment_id,
            "run_index": run_index,
            "position": item.position,
            "item_id": item.item_id,
            "model": item.model,
            "state": WAITING,
            "size": len(item.request.encode()),
            "request": item.request,
            "added_us": decided.now_us,
        }
        for run_index, (_, item) in asked.items()
    ]
    if values:
        connection.execute(sa.insert(batch_items), values)


def with_items(connection: sa.Connection, experiment_id: str, claims: Sequence[Claim]) -> list[Claim]:
    """Tells claims what has become of their run's question."""
    if not claims:
        return []
    found = connection.execute(SELECT_ITEMS, {"x": experiment_id, "indexes": [c.run_index for c in claims]})
    items = {row.run_index: BatchItem(row.position, row.state, row.result or "", row.shared) for row in found}
    return [replace(claim, item=items.get(claim.run_index)) for claim in claims]
