"""The event log: read by watches and by the relay, which records how far it has published, and cut by retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from promptlooper.errors import ExperimentNotFound, ResumeTokenExpired, ResumeTokenInvalid
from promptlooper.experiment import Experiment
from promptlooper.jsonvalue import json_value
from promptlooper.run import Event
from promptlooper.runner.store import repository
from promptlooper.runner.store.models import deleted, events, experiments, progress, relay
from promptlooper.runner.store.rows import event_of, moment_of
from promptlooper.runner.store.turns import locked_ledger

LAST = 2**62  # beyond any event
# Statements that are run many times a second are made once: making one costs more than running it.
SELECT_EVENTS = (
    sa.select(events)
    .where(
        events.c.experiment_id == sa.bindparam("x"),
        events.c.event_seq > sa.bindparam("after"),
        events.c.event_seq <= sa.bindparam("up_to"),
    )
    .order_by(events.c.event_seq)
    .limit(sa.bindparam("most"))
)
SELECT_KINDS = SELECT_EVENTS.where(events.c.kind.in_(sa.bindparam("kinds", expanding=True)))
SELECT_UNPUBLISHED = (
    sa.select(relay.c.experiment_id, experiments.c.project, relay.c.published_seq, progress.c.event_seq)
    .join(progress, progress.c.experiment_id == relay.c.experiment_id)
    .join(experiments, experiments.c.experiment_id == relay.c.experiment_id)
    .where(progress.c.event_seq > relay.c.published_seq)
    .order_by(experiments.c.created_us)
    .limit(sa.bindparam("most"))
)
SELECT_UNPUBLISHED_AMONG = SELECT_UNPUBLISHED.where(relay.c.experiment_id.in_(sa.bindparam("among", expanding=True)))
UPDATE_PUBLISHED = (
    sa.update(relay)
    .where(relay.c.experiment_id == sa.bindparam("x"), relay.c.published_seq < sa.bindparam("n"))
    .values(published_seq=sa.bindparam("n"))
)
FIXED_BYTES = 400  # of an event, beside its detail: more than ids, kind and numbers have on the wire


@dataclass(frozen=True, slots=True)
class LogPage:
    """Events in order, and what of the log they account for: all events up to `event_seq`, of the kinds asked for."""

    events: Sequence[Event]
    sizes: Sequence[int]  # bytes of each
    event_seq: int


def news_after(
    connection: sa.Connection,
    experiment_id: str,
    event_seq: int,
    limit: int,
    kinds: Sequence[str],
    now_us: int,
    *,
    at_most_bytes: int | None = None,
) -> tuple[Experiment, LogPage]:
    """The experiment, and its first events after event_seq. Raises as `page_after` does."""
    experiment = repository.get(connection, experiment_id, now_us)
    upto, project = experiment.event_seq, experiment.project
    if event_seq >= upto:
        return experiment, LogPage((), (), upto)
    found = page_after(
        connection, experiment_id, project, event_seq, limit, kinds, up_to=upto, at_most_bytes=at_most_bytes
    )
    return experiment, found


def start_of_watch(connection: sa.Connection, experiment_id: str, event_seq: int | None, now_us: int) -> Experiment:
    """The experiment, after a look whether all events after event_seq are there: ResumeTokenExpired, ResumeTokenInvalid
    where it is beyond the last event."""
    experiment = repository.get(connection, experiment_id, now_us)
    if event_seq is not None:
        if event_seq > experiment.event_seq:
            raise ResumeTokenInvalid("the resume token is newer than the experiment; watch without it")
        check_kept(connection, experiment_id, event_seq)
    return experiment


def page_after(
    connection: sa.Connection,
    experiment_id: str,
    project: str,
    event_seq: int,
    limit: int,
    kinds: Sequence[str] = (),
    *,
    up_to: int,
    at_most_bytes: int | None = None,
) -> LogPage:
    """Up to `limit` events after event_seq, none beyond `up_to`; at least one where there is one. Raises
    ResumeTokenExpired where one of them is gone, and ExperimentNotFound where the experiment is."""
    values = {"x": experiment_id, "after": event_seq, "up_to": up_to, "most": limit}
    if kinds:
        rows = connection.execute(SELECT_KINDS, {**values, "kinds": kinds}).all()
    else:
        rows = connection.execute(SELECT_EVENTS, values).all()
    found: list[Event] = []
    sizes: list[int] = []
    room = at_most_bytes
    for row in rows:
        size = FIXED_BYTES + len(row.detail_json.encode())
        if room is not None:
            if found and size > room:
                break
            room -= size
        found.append(event_of(row, project))
        sizes.append(size)
    whole = len(found) == len(rows) < limit
    reached = up_to if whole or not found else found[-1].event_seq
    if len(found) != reached - event_seq:
        # Some are not there: of other kinds, or deleted since. First events and then this, for a deletion commits both.
        check_kept(connection, experiment_id, event_seq)
    return LogPage(found, sizes, reached)


def first_event_seq(connection: sa.Connection, experiment_id: str) -> int:
    """The earliest event that is kept; one more than the last where none is."""
    query = sa.select(progress.c.first_event_seq).where(progress.c.experiment_id == experiment_id)
    first = connection.execute(query).scalar()
    if first is None:
        raise ExperimentNotFound(f"there is no experiment {experiment_id!r}; see `list`", experiment_id=experiment_id)
    return int(first)


def check_kept(connection: sa.Connection, experiment_id: str, event_seq: int) -> None:
    """Raises ResumeTokenExpired where an event after event_seq is gone."""
    first = first_event_seq(connection, experiment_id)
    if event_seq + 1 < first:
        raise ResumeTokenExpired(
            f"events {event_seq + 1} to {first - 1} of experiment {experiment_id!r} are no longer kept; watch again"
            f" without a token, or list events after {first - 1}",
            earliest_event_seq=str(first),
        )


def kept_after(connection: sa.Connection, experiment_id: str, project: str, event_seq: int, limit: int) -> list[Event]:
    """Events after event_seq that are kept, for the relay."""
    values = {"x": experiment_id, "after": event_seq, "up_to": LAST, "most": limit}
    return [event_of(row, project) for row in connection.execute(SELECT_EVENTS, values)]


def unpublished(
    connection: sa.Connection, limit: int, among: Sequence[str] | None = None
) -> list[tuple[str, str, int, int]]:
    """(experiment_id, project, published_seq, event_seq) of experiments with events that the relay has not published,
    of all or only `among` some."""
    values: dict[str, Any] = {"most": limit}
    if among is None:
        rows = connection.execute(SELECT_UNPUBLISHED, values)
    else:
        rows = connection.execute(SELECT_UNPUBLISHED_AMONG, {**values, "among": among})
    return [(r[0], r[1], r[2], r[3]) for r in rows]


def record_published(connection: sa.Connection, published: Mapping[str, int]) -> None:
    connection.execute(UPDATE_PUBLISHED, [{"x": experiment_id, "n": seq} for experiment_id, seq in published.items()])


def deletions(connection: sa.Connection, limit: int, only: str | None = None) -> list[Event]:
    """The last events of deleted experiments: unpublished ones, or that of `only` one, published or not."""
    query = sa.select(deleted).order_by(deleted.c.deleted_us).limit(limit)
    query = query.where(deleted.c.published == sa.false() if only is None else deleted.c.experiment_id == only)
    return [
        Event(
            experiment_id=row.experiment_id,
            event_seq=row.event_seq,
            project=row.project,
            kind="experiment.deleted",
            event_time=moment_of(row.deleted_us),  # type: ignore[arg-type]  # never None
            generation=row.generation,
            detail=json_value(row.detail_json),
        )
        for row in connection.execute(query)
    ]


def record_deletions_published(connection: sa.Connection, experiment_ids: Sequence[str]) -> None:
    connection.execute(sa.update(deleted).where(deleted.c.experiment_id.in_(experiment_ids)).values(published=True))


def forget_deletions(connection: sa.Connection, before_us: int, *, relayed: bool) -> None:
    """Of experiments deleted before `before_us`; with `relayed` only those that NATS was told of."""
    statement = sa.delete(deleted).where(deleted.c.deleted_us < before_us)
    if relayed:
        statement = statement.where(deleted.c.published == sa.true())
    connection.execute(statement)


def with_old_events(connection: sa.Connection, before_us: int, limit: int, after: str, *, relayed: bool) -> list[str]:
    """Experiments beyond `after`, by id, whose first kept event is older than `before_us` and, with `relayed`,
    published."""
    query = (
        sa.select(progress.c.experiment_id)
        .join(
            events,
            sa.and_(
                events.c.experiment_id == progress.c.experiment_id, events.c.event_seq == progress.c.first_event_seq
            ),
        )
        .where(progress.c.experiment_id > after, events.c.time_us < before_us)
        .order_by(progress.c.experiment_id)
        .limit(limit)
    )
    if relayed:
        query = query.join(relay, relay.c.experiment_id == progress.c.experiment_id).where(
            relay.c.published_seq >= progress.c.first_event_seq
        )
    return list(connection.execute(query).scalars())


def delete_old_events(
    connection: sa.Connection, experiment_id: str, before_us: int, limit: int, *, relayed: bool
) -> int:
    """Deletes up to `limit` of the experiment's first events, as far as all are older than `before_us` and, with
    `relayed`, published. Returns how many."""
    locked_ledger(connection, experiment_id)
    first = first_event_seq(connection, experiment_id)
    window = sa.and_(
        events.c.experiment_id == experiment_id, events.c.event_seq >= first, events.c.event_seq < first + limit
    )
    # Clocks of several Runners differ a little, so times are not quite in order: the first that is too young ends it.
    young = connection.execute(
        sa.select(sa.func.min(events.c.event_seq)).where(window, events.c.time_us >= before_us)
    ).scalar()
    last = connection.execute(sa.select(sa.func.max(events.c.event_seq)).where(window)).scalar()
    if last is None:
        return 0
    upto = last if young is None else young - 1
    if relayed:
        published = sa.select(relay.c.published_seq).where(relay.c.experiment_id == experiment_id)
        upto = min(upto, connection.execute(published).scalar() or 0)
    if upto < first:
        return 0
    connection.execute(sa.delete(events).where(window, events.c.event_seq <= upto))
    connection.execute(
        sa.update(progress).where(progress.c.experiment_id == experiment_id).values(first_event_seq=upto + 1)
    )
    return int(upto - first + 1)
