"""Which Runners live, and what becomes of the runs of those that died."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from promptlooper.failpoints import Failpoints
from promptlooper.runner.store.models import runners, runs
from promptlooper.runner.store.turns import RUN_COLUMNS, locked_ledger, pending_rows, run_row, with_results, write
from promptlooper.runner.turn import Claim, Turn


def _database_now_us(connection: sa.Connection) -> Any:
    """The database's clock as an SQL expression: Runners' clocks may differ."""
    if connection.dialect.name == "sqlite":
        return sa.literal_column("now_us()")  # `Database` defines it
    return sa.literal_column("(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint")


def register_runner(connection: sa.Connection, runner_id: str, ttl: float) -> None:
    until = _database_now_us(connection) + int(ttl * 1e6)
    connection.execute(sa.insert(runners).values(runner_id=runner_id, lease_until_us=until, dead=False))


def renew_runner(connection: sa.Connection, runner_id: str, ttl: float) -> bool:
    """False: the lease is gone, another Runner may have taken the runs."""
    until = _database_now_us(connection) + int(ttl * 1e6)
    statement = sa.update(runners).where(runners.c.runner_id == runner_id, runners.c.dead.is_(False))
    return connection.execute(statement.values(lease_until_us=until)).rowcount == 1


def mark_expired_runners(connection: sa.Connection, runner_id: str, ttl: float) -> None:
    """Marks Runners dead whose lease has run out, but not this one. Only for a Runner with one unbroken lease term of
    its own behind it: after an outage of the database nobody's lease is worth anything. Nor is it where this statement
    was on its way while the database was frozen: so the own lease must have been renewed within a third of its term."""
    now_us, own = _database_now_us(connection), runners.alias()
    renewed = sa.select(own.c.runner_id).where(
        own.c.runner_id == runner_id, own.c.dead.is_(False), own.c.lease_until_us > now_us + int(ttl * 2e6 / 3)
    )
    expired = sa.and_(
        runners.c.dead.is_(False),
        runners.c.lease_until_us < now_us,
        runners.c.runner_id != runner_id,
        sa.exists(renewed),
    )
    connection.execute(sa.update(runners).where(expired).values(dead=True))


def end_runner(connection: sa.Connection, runner_id: str) -> None:
    """Forgets a Runner. Runs that it could not hand back are orphans from now on."""
    connection.execute(sa.delete(runners).where(runners.c.runner_id == runner_id))


def _is_orphan(connection: sa.Connection) -> sa.ColumnElement[bool]:
    """RUNNING for a Runner that is dead or gone: by ownership, so that a claim that came too late is found too."""
    alive = sa.select(runners.c.runner_id).where(runners.c.dead.is_(False))
    return sa.and_(runs.c.state == sa.literal_column("'RUNNING'"), runs.c.owner.not_in(alive))


def orphaned(connection: sa.Connection) -> list[str]:
    """Experiments with runs of dead Runners."""
    query = sa.select(runs.c.experiment_id).distinct().where(_is_orphan(connection))
    return list(connection.execute(query).scalars())


def give_back_orphans(connection: sa.Connection, experiment_id: str, now_us: int) -> int:
    """Returns the runs of dead Runners to the experiment, under its lock. They continue after their last stored
    stage."""
    ledger = locked_ledger(connection, experiment_id)
    query = sa.select(*RUN_COLUMNS).where(runs.c.experiment_id == experiment_id, _is_orphan(connection))
    decided = Turn(ledger, "", now_us)
    rows = [run_row(row) for row in connection.execute(query)]
    decided.take_back(rows)
    decided.settle(lambda: [*decided.given_back, *pending_rows(connection, experiment_id)])
    write(connection, decided, Failpoints())
    return len(rows)


def bury_runners(connection: sa.Connection, dead: Sequence[str], now_us: int) -> None:
    """Gives back everything of Runners that are known to be dead. For SQLite, where one process may lock several
    experiments in one transaction: it locks the whole file."""
    connection.execute(sa.delete(runners).where(runners.c.runner_id.in_(dead)))
    for experiment_id in orphaned(connection):
        give_back_orphans(connection, experiment_id, now_us)


def forget_dead_runners(connection: sa.Connection) -> None:
    """Deletes the rows of dead Runners that hold no run any more."""
    holds = sa.select(runs.c.owner).where(runs.c.state == sa.literal_column("'RUNNING'"))
    connection.execute(sa.delete(runners).where(runners.c.dead.is_(True), runners.c.runner_id.not_in(holds)))


def owned_claims(connection: sa.Connection, experiment_id: str, runner_id: str) -> list[Claim]:
    """What a Runner holds of an experiment, with results: after a commit whose answer was lost."""
    query = sa.select(*RUN_COLUMNS).where(
        runs.c.experiment_id == experiment_id,
        runs.c.owner == runner_id,
        runs.c.state == sa.literal_column("'RUNNING'"),
    )
    decided = Turn(locked_ledger(connection, experiment_id), runner_id, 0)
    claims = [decided.claim_of(run_row(row)) for row in connection.execute(query)]
    return with_results(connection, experiment_id, claims)
