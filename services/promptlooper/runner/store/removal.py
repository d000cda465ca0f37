"""What a deletion leaves to be done: the rows of an experiment that nobody sees any more.

`control.delete` takes the progress row away, and with it all that clients and Runners see. The experiments row stays to
the end: it says that something is left, and is the lock of who removes it. Whoever comes goes on, from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from promptlooper.runner.store.database import Database
from promptlooper.runner.store.models import (
    batch_items,
    deleted,
    events,
    experiments,
    inputs,
    runs,
    scores,
    stage_results,
)

AT_ONCE = 1_000  # rows of a table that are deleted in one transaction: turns of other experiments wait meanwhile
INPUTS_AT_ONCE = 20  # one holds 200 inputs
PARTS = (
    (batch_items, batch_items.c.run_index, AT_ONCE),
    (scores, scores.c.run_index, AT_ONCE),
    (stage_results, stage_results.c.run_index, AT_ONCE),
    (runs, runs.c.run_index, AT_ONCE),
    (events, events.c.event_seq, AT_ONCE),
    (inputs, inputs.c.chunk, INPUTS_AT_ONCE),
)


@dataclass(frozen=True, slots=True)
class Place:
    """How far a removal has come: this part, up to this number. Without it each step would look through the remains of
    all earlier ones."""

    part: int = 0
    upto: int = -1


def left_behind(connection: sa.Connection) -> list[str]:
    """Deleted experiments of which something is left."""
    query = sa.select(deleted.c.experiment_id).join(experiments, experiments.c.experiment_id == deleted.c.experiment_id)
    return list(connection.execute(query).scalars())


def remove_some(connection: sa.Connection, experiment_id: str, place: Place) -> Place | None:
    """Deletes what comes next after `place`. Returns how far it has come, None at the end."""
    of_it = experiments.c.experiment_id == experiment_id
    if connection.execute(sa.select(experiments.c.created_us).where(of_it).with_for_update()).first() is None:
        return None  # another was faster
    for part in range(place.part, len(PARTS)):
        table, number, at_once = PARTS[part]
        rest = sa.and_(table.c.experiment_id == experiment_id, number > (place.upto if part == place.part else -1))
        last = connection.execute(sa.select(number).where(rest).order_by(number).offset(at_once - 1).limit(1)).scalar()
        if last is not None:
            connection.execute(sa.delete(table).where(rest, number <= last))
            return Place(part, last)
        connection.execute(sa.delete(table).where(rest))
    connection.execute(sa.delete(experiments).where(of_it))
    return None


async def remove(database: Database, experiment_id: str) -> None:
    """Removes all that is left of a deleted experiment, in short transactions."""
    place: Place | None = Place()
    while place is not None:
        place = await database.write(partial(remove_some, experiment_id=experiment_id, place=place))
