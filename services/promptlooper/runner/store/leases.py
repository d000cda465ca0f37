"""Which Runners live, and what becomes of the runs of those that died."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from promptlooper.failpoints import Failpoints
from promptlooper.runner.claims import Claim
from promptlooper.runner.store import questions
from promptlooper.runner.store.models import runners, runs
from promptlooper.runner.store.turns import RUN_COLUMNS, locked_ledger, pending_rows, run_row, with_results, write
from promptlooper.runner.turn import Turn


class DatabaseNow(FunctionElement[int]):
    """The database's clock in microseconds: Runners' clocks may differ."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(DatabaseNow)
def _in_postgresql(*_: Any, **__: Any) -> str:
    return "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint"


@compiles(DatabaseNow, "sqlite")
def _in_sqlite(*_: Any, **__: Any) -> str:
    return "now_us()"  # `Database` defines it


NOW, OWN = DatabaseNow(), runners.alias()
RUNNING = runs.c.state == sa.literal_column("'RUNNING'")
# RUNNING for a Runner that is dead or gone: by ownership, so that a claim that came too late is found too.
IS_ORPHAN = sa.and_(RUNNING, runs.c.owner.not_in(sa.select(runners.c.runner_id).where(runners.c.dead.is_(False))))
# Statements that are run many times a second are made once: making one costs more than running it.
KILL_NAMESAKES = sa.update(runners).where(runners.c.name == sa.bindparam("n")).values(dead=True)
REGISTER = sa.insert(runners).values(
    runner_id=sa.bindparam("r"), name=sa.bindparam("n"), lease_until_us=NOW + sa.bindparam("us"), dead=False
)
RENEW = (
    sa.update(runners)
    .where(runners.c.runner_id == sa.bindparam("r"), runners.c.dead.is_(False))
    .values(lease_until_us=NOW + sa.bindparam("us"))
)
RENEWED = sa.select(OWN.c.runner_id).where(
    OWN.c.runner_id == sa.bindparam("r"), OWN.c.dead.is_(False), OWN.c.lease_until_us > NOW + sa.bindparam("us")
)
MARK_EXPIRED = (
    sa.update(runners)
    .where(
        runners.c.dead.is_(False),
        runners.c.lease_until_us < NOW,
        runners.c.runner_id != sa.bindparam("r"),
        sa.exists(RENEWED),
    )
    .values(dead=True)
)
END = sa.delete(runners).where(runners.c.runner_id == sa.bindparam("r"))
SELECT_ORPHANED = sa.select(runs.c.experiment_id).distinct().where(IS_ORPHAN)
SELECT_ORPHANS = sa.select(*RUN_COLUMNS).where(runs.c.experiment_id == sa.bindparam("x"), IS_ORPHAN)
FORGET_DEAD = sa.delete(runners).where(
    runners.c.dead.is_(True), runners.c.runner_id.not_in(sa.select(runs.c.owner).where(RUNNING))
)
SELECT_OWNED = sa.select(*RUN_COLUMNS).where(
    runs.c.experiment_id == sa.bindparam("x"), runs.c.owner == sa.bindparam("r"), RUNNING
)


def register_runner(connection: sa.Connection, runner_id: str, ttl: float, name: str = "") -> None:
    """With a name that is this Runner's own, what was registered by that name before is dead: its process has ended, or
    it is frozen and what it still does is refused."""
    if name:
        connection.execute(KILL_NAMESAKES, {"n": name})
    connection.execute(REGISTER, {"r": runner_id, "n": name, "us": int(ttl * 1e6)})


def renew_runner(connection: sa.Connection, runner_id: str, ttl: float) -> bool:
    """False: the lease is gone, another Runner may have taken the runs."""
    return connection.execute(RENEW, {"r": runner_id, "us": int(ttl * 1e6)}).rowcount == 1


def mark_expired_runners(connection: sa.Connection, runner_id: str, ttl: float) -> None:
    """Marks Runners dead whose lease has run out, but not this one. Only for a Runner with one unbroken lease term of
    its own behind it: after an outage of the database nobody's lease is worth anything. Nor is it where this statement
    was on its way while the database was frozen: so the own lease must have been renewed within a third of its term."""
    connection.execute(MARK_EXPIRED, {"r": runner_id, "us": int(ttl * 2e6 / 3)})


def end_runner(connection: sa.Connection, runner_id: str) -> None:
    """Forgets a Runner. Runs that it could not hand back are orphans from now on."""
    connection.execute(END, {"r": runner_id})


def orphaned(connection: sa.Connection) -> list[str]:
    """Experiments with runs of dead Runners."""
    return list(connection.execute(SELECT_ORPHANED).scalars())


def give_back_orphans(connection: sa.Connection, experiment_id: str, now_us: int) -> int:
    """Returns the runs of dead Runners to the experiment, under its lock. They continue after their last stored
    stage."""
    ledger = locked_ledger(connection, experiment_id)
    decided = Turn(ledger, "", now_us)
    rows = [run_row(row) for row in connection.execute(SELECT_ORPHANS, {"x": experiment_id})]
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
    connection.execute(FORGET_DEAD)


def owned_claims(connection: sa.Connection, experiment_id: str, runner_id: str) -> list[Claim]:
    """What a Runner holds of an experiment, with results: after a commit whose answer was lost."""
    decided = Turn(locked_ledger(connection, experiment_id), runner_id, 0)
    owned = connection.execute(SELECT_OWNED, {"x": experiment_id, "r": runner_id})
    claims = [decided.claim_of(run_row(row)) for row in owned]
    return questions.with_items(connection, experiment_id, with_results(connection, experiment_id, claims))
