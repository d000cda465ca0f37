"""The event log: read by watches and by the relay, which records how far it has published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from promptlooper.run import Event
from promptlooper.runner.store.models import events, experiments, progress, relay
from promptlooper.runner.store.rows import event_of


def events_after(
    connection: sa.Connection,
    experiment_id: str,
    project: str,
    event_seq: int,
    limit: int,
    kinds: Sequence[str] = (),
    up_to: int | None = None,
) -> list[Event]:
    query = (
        sa.select(events)
        .where(events.c.experiment_id == experiment_id, events.c.event_seq > event_seq)
        .order_by(events.c.event_seq)
        .limit(limit)
    )
    if kinds:
        query = query.where(events.c.kind.in_(kinds))
    if up_to is not None:
        query = query.where(events.c.event_seq <= up_to)
    return [event_of(row, project) for row in connection.execute(query)]


def earliest_event_seq(connection: sa.Connection, experiment_id: str) -> int | None:
    query = sa.select(sa.func.min(events.c.event_seq)).where(events.c.experiment_id == experiment_id)
    return connection.execute(query).scalar()


def unpublished(
    connection: sa.Connection, limit: int, among: Sequence[str] | None = None
) -> list[tuple[str, str, int, int]]:
    """(experiment_id, project, published_seq, event_seq) of experiments with events that the relay has not published,
    of all or only `among` some."""
    query = (
        sa.select(relay.c.experiment_id, experiments.c.project, relay.c.published_seq, progress.c.event_seq)
        .join(progress, progress.c.experiment_id == relay.c.experiment_id)
        .join(experiments, experiments.c.experiment_id == relay.c.experiment_id)
        .where(progress.c.event_seq > relay.c.published_seq)
        .order_by(experiments.c.created_us)
        .limit(limit)
    )
    if among is not None:
        query = query.where(relay.c.experiment_id.in_(among))
    return [(r[0], r[1], r[2], r[3]) for r in connection.execute(query)]


def record_published(connection: sa.Connection, published: Mapping[str, int]) -> None:
    statement = (
        sa.update(relay)
        .where(relay.c.experiment_id == sa.bindparam("x"), relay.c.published_seq < sa.bindparam("n"))
        .values(published_seq=sa.bindparam("n"))
    )
    connection.execute(statement, [{"x": experiment_id, "n": seq} for experiment_id, seq in published.items()])
